"""The audit log: who logged in, fetched and deleted what. When a record must be on disk, and what happens if it is not.

    AuditTrail (audit_trail)     renders the records of one session
    Chain (audit_chain)          numbers them, links each to the one before, signs some
    AuditLog                     decides when they are written           -+  RecordBuffer (audit_buffer) between them
    Sink (audit_file, _sink)     writes octets to a file or a pipe       -+

Records of messages are written together, after `flush_interval` at the latest. Who has to wait for a record (a login,
QUIT) calls `commit`: all that wait in one turn of the event loop share one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from popproxy.errors import AuditError
from popproxy.observe.audit_buffer import RecordBuffer
from popproxy.observe.audit_chain import Chain, Signer
from popproxy.observe.audit_copy import Copy
from popproxy.observe.audit_file import FileSink
from popproxy.observe.audit_marks import Marks
from popproxy.observe.audit_render import UniqueIds, json_fields, json_string
from popproxy.observe.audit_sink import Sink, StdoutSink
from popproxy.observe.audit_trail import AuditTrail
from popproxy.observe.logs import get_logger
from popproxy.observe.metrics import Metrics
from popproxy.types import Address, Outcome, SessionId

__all__ = ["AuditLog", "AuditTrail", "FileSink", "Sink", "StdoutSink"]

BUFFER_OCTETS = 4 * 1024 * 1024
"""Records kept while they cannot be written; beyond, they are dropped and counted."""

_BATCH_OCTETS = 64 * 1024  # as much pending is written at the end of this turn of the loop
_RETRY_INTERVAL = 1.0  # seconds between attempts while the sink fails
_STALL_LIMIT = 5.0  # seconds that a sink may take nothing before that counts as a failure
_CLOSE_LIMIT = 2.0  # seconds that close waits for a slow reader
_SETTLE_PAUSE = 0.01

Written = Callable[[bool], None]
"""Told whether the records it waited for are written."""


class AuditLog:
    """The audit log of this process.

    `on_error` says what `commit` makes of a failed write: an error (closed) or nothing (open). `flush_interval` is in
    seconds. Unless `log_unknown_users`, names that belong to no account are written as ``user.hash``, HMAC-SHA256
    under a key that lives as long as the process: equal names can be told within one run, and no list of names can be
    tried later.

    With a `signer` there is a signed checkpoint after `checkpoint_records` records, and `checkpoint_interval` seconds
    after a record at the latest. `origin` are members for the records that begin a segment or a file.
    """

    def __init__(
        self,
        sink: Sink,
        metrics: Metrics,
        *,
        on_error: Literal["closed", "open"],
        flush_interval: float,
        log_unknown_users: bool,
        version: str,
        buffer_octets: int = BUFFER_OCTETS,
        signer: Signer | None = None,
        checkpoint_records: int = 1000,
        checkpoint_interval: float = 60.0,
        origin: Mapping[str, object] | None = None,
        unique_ids: UniqueIds | None = None,
        copies: Sequence[Copy] = (),
    ) -> None:
        self.healthy = True  # the last write succeeded
        self.unique_ids = unique_ids or UniqueIds()
        self._sink = sink
        self._copies = copies
        self._metrics = metrics
        self._open = on_error == "open"
        self._flush_interval = flush_interval
        self._log_unknown_users = log_unknown_users
        self._chain = Chain(signer)
        self._marks = Marks(self._chain, version, origin)
        self._checkpoint_records = checkpoint_records
        self._checkpoint_interval = checkpoint_interval
        self._checkpoint_timer: asyncio.TimerHandle | None = None  # while records are not covered by a signature
        self._buffer = RecordBuffer(buffer_octets)
        self._user_key = secrets.token_bytes(32)
        self._waiters: list[tuple[Written, bool]] = []  # told after the next write; False: a record of theirs is lost
        self._turn: asyncio.Handle | None = None  # the write at the end of this turn
        self._timer: asyncio.TimerHandle | None = None  # the write of what nobody waits for
        self._stalled_since: float | None = None  # when the sink began to take nothing (monotonic)
        self._closed = False
        self._logger = get_logger("popproxy.audit")

    @property
    def segment(self) -> str:
        """The name of our part of the log: ``chain.segment``."""
        return self._chain.segment

    # Recording

    def start(self) -> None:
        """Record ``audit_start``, with host, version and process, and the latest records of others in the file."""
        self._keep_mark(self._marks.start(self._sink.tail()))

    def trail(
        self, session_id: SessionId, listener: str, source: Address, proxied_by: Address | None = None
    ) -> AuditTrail:
        """The records of one session; `source` is the client, `proxied_by` the load balancer that named it."""
        return AuditTrail(self, session_id, listener, source, proxied_by)

    def event(self, action: str, outcome: Outcome, **fields: object) -> None:
        """Record something rare that belongs to no session; the names of `fields` are ECS names with dots."""
        members = json_fields({"event.action": action, "event.outcome": outcome.value, **fields})
        self.record(members)

    def record(self, fields: str) -> None:
        """Keep a record: JSON members from ``"event.action"`` on, without braces, on one line."""
        if self._buffer.lost and self._buffer.may_go_on:
            self._record_gap()
        self._keep(self._chain.seal(fields))

    def user_field(self, user: str, disclose: bool) -> str:
        """``"user.name"`` if the name may be written, else ``"user.hash"``: people type passwords there."""
        if disclose or self._log_unknown_users:
            return f'"user.name":{json_string(user)}'
        digest = hmac.digest(self._user_key, user.encode("utf-8", "surrogatepass"), "sha256")
        return f'"user.hash":"{digest[:16].hex()}"'

    # Waiting

    async def commit(self) -> None:
        """Return once everything recorded so far is written.

        Raises AuditError if it could not be written; if the log is open, it then returns all the same.
        """
        if not self._pending:
            return
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.commit_then(lambda ok: None if written.done() else written.set_result(ok))
        if not await written:
            raise AuditError("the audit record could not be written")

    def commit_then(self, callback: Written) -> None:
        """`commit` for code that cannot wait: `callback` is called exactly once, with True where commit returns.

        At once if nothing is pending, else in a later turn of the running event loop.
        """
        if not self._pending:
            callback(True)
            return
        self._waiters.append((callback, not self._buffer.lost))
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._end_turn)

    def flush(self) -> bool:
        """Write everything now, without a loop; True if nothing is left pending."""
        self._end_turn()
        return not self._pending

    def reopen(self) -> None:
        """Go on in a new file if ours was renamed. Raises AuditError, and then goes on with the old file."""
        try:
            with contextlib.suppress(BlockingIOError):  # the next write sees to it
                self._change_files()
        finally:
            self.flush()

    def close(self) -> None:
        """Record ``audit_stop``, write what is left, close the sink. What cannot be written is counted and logged.

        Not an error if it is closed already.
        """
        if self._closed:
            return
        self._closed = True
        self._keep_mark(self._marks.stop(self._sink.tail()))
        deadline = time.monotonic() + _CLOSE_LIMIT
        while not self.flush() and self._stalled_since is not None and time.monotonic() < deadline:
            self._sink.wait(0.05)
        self._tell_waiters(not self._pending)
        lost = self._buffer.discard()
        if lost:
            self._metrics.audit_records[(self._sink.name, "dropped")] += lost
            self._logger.error("audit records lost at exit", records=lost, sink=self._sink.name)
        for timer in (self._timer, self._checkpoint_timer):
            if timer is not None:
                timer.cancel()
        self._sink.close()
        for copy in self._copies:
            copy.finish()

    async def settle(self) -> None:
        """After `close`: let what the copies have taken get to where it goes, for two seconds at most."""
        give_up = time.monotonic() + _CLOSE_LIMIT
        for copy in self._copies:
            while not copy.settled and time.monotonic() < give_up:  # noqa: ASYNC110 - at the end, and over soon
                await asyncio.sleep(_SETTLE_PAUSE)
            copy.close()

    # Writing

    @property
    def _pending(self) -> bool:
        return bool(self._buffer.octets or self._buffer.lost)

    def _keep(self, line: bytes) -> None:
        buffer = self._buffer
        if not buffer.append(line, self._chain.sequence):
            self._metrics.audit_records[(self._sink.name, "dropped")] += 1
        for copy in self._copies:
            copy.take(line, self._chain.sequence)
        if self._timer is None or buffer.octets >= _BATCH_OCTETS:
            self._schedule()

    def _keep_mark(self, line: bytes) -> None:
        self._keep(line)
        if self._chain.signs:
            self._metrics.audit_last_checkpoint = time.time()

    def _record_gap(self) -> None:
        self._keep_mark(self._marks.gap(self._sink.name, *self._buffer.take_gap()))

    def _checkpoint(self) -> None:
        """Sign what there is since the latest signature; called as soon as that is much, or old."""
        if self._checkpoint_timer is not None:
            self._checkpoint_timer.cancel()
            self._checkpoint_timer = None
        if self._chain.sequence > self._chain.signed:
            self._keep_mark(self._marks.checkpoint(self._sink.tail()))

    def _schedule(self) -> None:
        """Have the pending records written soon; at once where no loop runs."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._end_turn()
            return
        if self._timer is None:
            self._timer = loop.call_later(self._flush_interval if self.healthy else _RETRY_INTERVAL, self._flush_later)
        if self._turn is None and self.healthy and self._stalled_since is None and self._buffer.octets >= _BATCH_OCTETS:
            self._turn = loop.call_soon(self._end_turn)

    def _flush_later(self) -> None:
        self._timer = None
        if self._pending:
            self._end_turn()

    def _end_turn(self) -> None:
        """Write what is pending and tell all that wait for it."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        written = self._write()
        if written is not None or self._open:
            self._tell_waiters(bool(written))
        if self._pending and self._timer is None:
            with contextlib.suppress(RuntimeError):  # no loop: the next record or flush tries again
                asyncio.get_running_loop()
                self._schedule()

    def _write(self) -> bool | None:
        """True if all is written, False if the sink failed, None if it is only slow."""
        buffer, chain = self._buffer, self._chain
        before = buffer.written
        unfinished = buffer.unfinished
        if chain.signs and chain.sequence - chain.signed >= self._checkpoint_records:
            self._checkpoint()
        for copy in self._copies:
            if copy.may_go_on:
                self._keep_mark(self._marks.gap(copy.name, *copy.take_gap(), copy=True))
        try:
            if not self._closed and self._sink.due():  # first: ours may have been renamed long ago, and compressed
                self._try_to_change_files()
            buffer.drain(self._sink.write)
            if buffer.lost:
                self._record_gap()
                buffer.drain(self._sink.write)
            if self._sink.torn:
                octets, self._sink.torn = self._sink.torn, 0
                self._keep_mark(self._marks.torn(octets))
                buffer.drain(self._sink.write)
        except BlockingIOError:
            return self._stalled(buffer.written != before or buffer.unfinished != unfinished)
        except OSError as error:
            self._failed(error.strerror or type(error).__name__)
            return False
        finally:
            self._metrics.audit_records[(self._sink.name, "written")] += buffer.written - before
            self._metrics.audit_pending[self._sink.name] = buffer.octets
            self._metrics.audit_unsigned = chain.sequence - chain.signed if chain.signs else 0
        self._recovered()
        if chain.signs and self._checkpoint_timer is None and chain.sequence > chain.signed and not self._closed:
            with contextlib.suppress(RuntimeError):  # no loop: the next records are signed, or the end
                loop = asyncio.get_running_loop()
                self._checkpoint_timer = loop.call_later(self._checkpoint_interval, self._checkpoint)
        return True

    def _try_to_change_files(self) -> None:
        try:
            self._change_files()
        except AuditError as error:
            self._logger.error("the audit log goes on in the old file", why=str(error))

    def _change_files(self) -> None:
        """The last record of the old file and the first of the new one are signed, and nothing is between them.

        Raises AuditError, and BlockingIOError if another writer is not done.
        """
        if self._sink.there:
            self._keep_mark(self._marks.checkpoint(self._sink.tail()))
            try:
                self._buffer.drain(self._sink.write)
            except BlockingIOError:
                raise
            except OSError:
                pass  # what the old file does not take goes to the new one
        if self._sink.reopen(self._buffer.unfinished):
            self._buffer.restart_line()
            self._keep_mark(self._marks.rotate(self._sink.tail()))

    def _stalled(self, progress: bool) -> bool | None:
        now = time.monotonic()
        if progress or self._stalled_since is None:
            self._stalled_since = now
        if now - self._stalled_since < _STALL_LIMIT:
            return None
        self._failed("its reader takes nothing")
        return False

    def _failed(self, why: str) -> None:
        self._metrics.audit_write_failures[self._sink.name] += 1
        if self.healthy:
            self.healthy = False
            self._metrics.audit_healthy = 0
            self._logger.error("the audit log cannot be written", sink=self._sink.name, reason=why)

    def _recovered(self) -> None:
        self._stalled_since = None
        if not self.healthy:
            self.healthy = True
            self._metrics.audit_healthy = 1
            self._logger.info("the audit log is written again", sink=self._sink.name)

    def _tell_waiters(self, written: bool) -> None:
        waiters, self._waiters = self._waiters, []
        for callback, intact in waiters:
            try:
                callback((written and intact) or self._open)
            except Exception:
                self._logger.exception("a callback of the audit log failed")  # the others must be told all the same
