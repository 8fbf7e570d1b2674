"""Copies of the audit log elsewhere: each with a queue of its own, which never holds up a login.

Who logs in waits for the log itself only. A copy that fails or is slow is tried again; what its queue does not hold is
named by an ``audit_gap`` with the name of the copy. The records are the log's, octet for octet, so that a copy can be
verified like the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections import deque
from pathlib import Path

from popproxy.observe.audit_sink import StdoutSink
from popproxy.observe.logs import get_logger
from popproxy.observe.metrics import Metrics

COPY_OCTETS = 4 * 1024 * 1024
"""Records that a copy keeps while it cannot be written; beyond, they are dropped and counted."""
JOURNAL = Path("/run/systemd/journal/socket")

_SOON = 0.05  # seconds until what was recorded is sent on
_RETRY = 1.0  # seconds between attempts while it fails


class Copy:
    """What all kinds have in common. `name` is a metric label."""

    name: str

    def __init__(self, metrics: Metrics, limit: int = COPY_OCTETS) -> None:
        self.lost = 0  # records dropped for which no audit_gap has been recorded yet
        self.octets = 0  # in `lines`
        self.lines: deque[bytes] = deque()
        self._limit = limit
        self._lost_from = 0
        self._metrics = metrics
        self._timer: asyncio.TimerHandle | None = None
        self._works = True
        self._logger = get_logger("popproxy.audit")

    def take(self, line: bytes, sequence: int) -> None:
        """Keep the record of this number, to be sent on soon."""
        if self.lost or self.octets + len(line) > self._limit:
            if not self.lost:
                self._lost_from = sequence
            self.lost += 1
            self._metrics.audit_records[(self.name, "dropped")] += 1
            return
        self.lines.append(line)
        self.octets += len(line)
        self._metrics.audit_pending[self.name] = self.octets
        self._push_in(_SOON)

    @property
    def may_go_on(self) -> bool:
        """Records were lost, and there is room again."""
        return self.lost > 0 and self.octets <= self._limit // 2

    def take_gap(self) -> tuple[int, int]:
        """The number of the first lost record, and how many are lost; what comes now is kept again."""
        lost, self.lost = self.lost, 0
        return self._lost_from, lost

    @property
    def settled(self) -> bool:
        """Nothing is left to be sent."""
        return not self.lines

    def finish(self) -> None:
        """There will be no more records: send what can be sent at once."""
        self._push_now()

    def close(self) -> None:
        """Give up the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def push(self) -> None:
        """Send on all lines, calling `sent` for each. Raises OSError; BlockingIOError if it must wait."""
        raise NotImplementedError

    def sent(self) -> None:
        """The first line is out."""
        self.octets -= len(self.lines.popleft())
        self._metrics.audit_records[(self.name, "written")] += 1

    def failed(self, why: str) -> None:
        """It cannot be written for the time being."""
        self._metrics.audit_write_failures[self.name] += 1
        if self._works:
            self._works = False
            self._logger.error("a copy of the audit log cannot be written", sink=self.name, reason=why)

    def works(self) -> None:
        """It can be written."""
        if not self._works:
            self._works = True
            self._logger.info("a copy of the audit log is written again", sink=self.name)

    def _push_in(self, seconds: float) -> None:
        if self._timer is None:
            with contextlib.suppress(RuntimeError):  # no loop: with the next record, or at the end
                self._timer = asyncio.get_running_loop().call_later(seconds, self._push_now)

    def _push_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pause = _SOON
        try:
            self.push()
            self.works()
        except BlockingIOError:
            pass
        except OSError as error:
            self.failed(error.strerror or type(error).__name__)
            pause = _RETRY
        self._metrics.audit_pending[self.name] = self.octets
        if self.lines:
            self._push_in(pause)


class StdoutCopy(Copy):
    """Standard output, beside a file."""

    name = "stdout"

    def __init__(self, metrics: Metrics, fd: int = 1) -> None:
        super().__init__(metrics)
        self._sink = StdoutSink(fd)
        self._taken = 0  # octets of the first line

    def push(self) -> None:
        """See Copy."""
        while self.lines:
            self._taken += self._sink.write(memoryview(self.lines[0])[self._taken :])
            if self._taken >= len(self.lines[0]):
                self._taken = 0
                self.sent()

    def close(self) -> None:
        """See Copy."""
        super().close()
        self._sink.close()


class JournalCopy(Copy):
    """systemd's journal by its native protocol: ``journalctl -t popproxy-audit -o cat`` has the records."""

    name = "journald"

    def __init__(self, metrics: Metrics, path: Path = JOURNAL) -> None:
        super().__init__(metrics)
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def push(self) -> None:
        """See Copy."""
        while self.lines:
            record = self.lines[0].removesuffix(b"\n")
            datagram = b"MESSAGE=%b\nPRIORITY=6\nSYSLOG_FACILITY=13\nSYSLOG_IDENTIFIER=popproxy-audit\n" % record
            try:
                self._socket.sendto(datagram, self._path)
            except OSError as error:
                if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                    raise
                self._send_in_memory(datagram)  # or nothing behind it would ever get there
            self.sent()

    def _send_in_memory(self, datagram: bytes) -> None:
        """What is too long for a datagram goes in a sealed file without a name: systemd's JOURNAL_NATIVE_PROTOCOL."""
        descriptor = os.memfd_create("popproxy-audit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(datagram)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor.to_bytes(4, sys.byteorder))]
            self._socket.sendmsg([], rights, 0, self._path)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """See Copy."""
        super().close()
        self._socket.close()
