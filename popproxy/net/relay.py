"""TRANSACTION and UPDATE of one session: the hot path. Driven by callbacks, without a task.

The rules that keep mail safe (R1-R7) are all here:

* R1, R2: QUIT goes to the backend only when the client has sent a whole QUIT line;
* R3: in any doubt the backend is left by RST, so that nothing buffered is read as a command;
* R4: between replies the client is told ``-ERR [SYS/TEMP]``; inside a body nothing is invented, the connection is cut;
* R5: QUIT without an answer is *unknown*, never +OK;
* R6: one session, one ``session_end``;
* R7: a pipelined QUIT waits until every earlier reply is in the client's socket, else a death in mid-RETR would commit
  deletions of messages that never arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from popproxy.config.model import Timeouts
from popproxy.net.books import Books
from popproxy.net.channel import NOBODY, Channel
from popproxy.net.deadlines import Deadlines
from popproxy.net.pace import Pace, often
from popproxy.net.splice import Pipe, Splice
from popproxy.net.tapped import Tap, TappedChannel
from popproxy.observe.audit import AuditLog
from popproxy.observe.audit_trail import AuditTrail
from popproxy.observe.metrics import Metrics
from popproxy.pop3 import replies
from popproxy.pop3.exchange import Exchange
from popproxy.pop3.exchanged import Exchanged
from popproxy.pop3.states import State
from popproxy.types import CloseReason

_CLIENT_LOST = {"internal": CloseReason.INTERNAL, "gss_layer": CloseReason.PROTOCOL}
"""Why the client's channel was lost, if it was not the client that went."""

GONE_CLIENT_WAITS = 30.0
"""Seconds to wait for the answer to QUIT on behalf of a client that has already gone."""
SHORT_REPLY = 16 * 1024
"""Octets of a reply up to which it is worth a copy to send it together with those of other sessions."""
ROUNDS = 8
"""Times that one session may be answered in a row, some hundred commands each time, before others get their turn."""


@dataclass(frozen=True, slots=True)
class RelayContext:
    """What all relays of a listener share."""

    listener: str
    metrics: Metrics
    audit: AuditLog
    deadlines: Deadlines
    timeouts: Timeouts
    pipe: Pipe | None = None  # where a pool has splice: true


class Relay:
    """A client and its open maildrop. Receives from the client; a `_BackendSide` receives from the backend.

    `ended` is called once, with the reason, when the session is over for the books; the last octets may still be on
    their way to the client then.
    """

    __slots__ = (
        "_backend", "_books", "_client", "_command", "_context", "_ended", "_exchange", "_lost", "_pace", "_quit_sent",
        "_reply", "_splice", "_started", "deadline",
    )  # fmt: skip

    def __init__(
        self, context: RelayContext, client: Channel, backend: Channel, backend_label: str, exchange: Exchange,
        trail: AuditTrail, started: float, octets: tuple[int, int], ended: Callable[[CloseReason], None],
    ) -> None:  # fmt: skip
        self.deadline = context.deadlines.now + context.timeouts.idle
        self._context = context
        self._client = client
        self._backend = backend
        self._exchange = exchange
        self._books = Books(context.metrics, trail, context.listener, backend_label, exchange, octets)
        self._started = started
        self._ended: Callable[[CloseReason], None] | None = ended
        self._lost: CloseReason | None = None  # the backend is gone and the client has not been told yet
        self._command = b""  # about to be sent to the backend, in this turn of the reactor
        self._reply = b""  # about to be sent to the client, likewise
        self._quit_sent = 0.0
        self._pace = Pace()
        self._splice: Splice | None = None

    def splice(self) -> None:
        """Move long messages inside the kernel, if nothing has to be done with them on the way."""
        if self._context.pipe is not None and self._client.layer is None and self._backend.layer is None:
            self._splice = Splice(self._context.pipe, self._backend, self._client, self)

    def start(self, pipelined: bytes, client_eof: bool) -> None:
        """Take over both channels. `pipelined`: what the client has sent behind its login."""
        self._client.receiver = self
        self._backend.receiver = _BackendSide(self)
        self._context.deadlines.add(self)
        self._books.opened()
        if pipelined:
            self._exchange.receive_from_client(pipelined)
        if client_eof:
            self._exchange.receive_client_eof()
        self._pump()
        self._client.resume()
        if self._backend.closed and self._ended is not None:
            self._backend_gone("reset")

    # ---- from the client ----

    def data_received(self, buffer: bytearray, end: int) -> None:
        """Commands."""
        self._books.bytes_in += end
        data = bytes(memoryview(buffer)[:end])
        if self._lost is not None or not self._exchange.take_lone_command(data):
            self._exchange.receive_from_client(data)
            self._pump()
            return
        self._books.asked(end)
        context = self._context
        self.deadline = context.deadlines.now + context.timeouts.stall
        self._command = data
        self._backend.reactor.afterwards(self._backend, self._send_lone_command)

    def _send_lone_command(self) -> None:
        command, self._command = self._command, b""
        self._backend.write(command)

    def eof_received(self) -> None:
        """The client has closed its side: it still gets the answers to what it has asked."""
        self._exchange.receive_client_eof()
        self._pump()

    def drained(self) -> None:
        """The client has taken all there was."""
        self._pace.keeps_up()
        self._backend.resume()
        self._record()
        self._pump()

    def connection_lost(self, reason: str) -> None:
        """The client is gone."""
        if self._exchange.state is State.UPDATE:
            return  # the deadline's next look at it finds out
        self._leave(_CLIENT_LOST.get(reason, CloseReason.CLIENT_LOST))

    # ---- from the backend ----

    def backend_data(self, buffer: bytearray, end: int) -> None:
        """Replies."""
        exchange, client = self._exchange, self._client
        if exchange.take_lone_reply(buffer, end):
            if end <= SHORT_REPLY:
                self._reply = bytes(memoryview(buffer)[:end])
                client.reactor.afterwards(client, self._send_lone_reply)
                return
            shown = None
        else:
            shown = exchange.receive_from_backend(buffer, end)
        if shown is None:
            taken = client.write(memoryview(buffer)[:end])
            self._books.sent(end)
        elif shown:
            taken = client.write(shown)
            self._books.sent(len(shown))
        else:
            taken = not client.pending
        self._after_replies(taken)

    def _send_lone_reply(self) -> None:
        reply, self._reply = self._reply, b""
        if reply and self._ended is not None:
            taken = self._client.write(reply)
            self._books.sent(len(reply))
            self._after_replies(taken)

    def _after_replies(self, taken: bool) -> None:
        """Octets of the backend have been written to the client; `taken` if they are all in its socket."""
        exchange, client = self._exchange, self._client
        # what is not in the client's socket yet is not complete: recorded when it is, or as cut when the client is lost
        if exchange.events and (taken or exchange.state is State.CLOSED):
            self._record()
        if self._ended is None:
            return
        if exchange.violation is not None:
            self._backend_gone(exchange.violation.reason, CloseReason.BACKEND_PROTOCOL)
            return
        if not taken:
            self._pace.falls_behind(client.unacknowledged, self._context.deadlines.now)
            self._backend.pause()
        elif exchange.settled:
            context = self._context
            self.deadline = context.deadlines.now + context.timeouts.idle
            if not client.reading:
                client.resume()
            return
        elif self._splice is not None:
            self._splice.engage()
        self._pump()

    @property
    def octets_to_move(self) -> int:
        """See Moving."""
        return self._exchange.octets_to_come

    def moved(self, octets: int, rest: bytes) -> None:
        """See Moving."""
        self._exchange.skip_body(octets)
        self._books.sent(octets)
        self._after_replies(self._client.write(rest))

    def backend_drained(self) -> None:
        """The backend has taken all commands."""
        self._pump()

    def backend_lost(self, reason: str) -> None:
        """The backend has closed or reset the connection."""
        if reason == "internal":
            self._backend_gone("other", CloseReason.INTERNAL)
        else:
            self._backend_gone(reason)

    # ---- the dialogue ----

    def _pump(self) -> None:
        """Hand on what may be handed on now, and set the deadline for what is awaited."""
        if self._reply:  # before anything else that may be said
            self._send_lone_reply()
        exchange, client, backend = self._exchange, self._client, self._backend
        # each answer of ours may make room for more commands, or clear the way for QUIT; a client that reads no answers
        # gets no more of them
        rounds = 0
        while self._send_commands() and self._send_answers() and not client.pending:
            rounds += 1
            if rounds == ROUNDS:
                client.call_soon(self._pump)
                break
        if self._is_over() or self._lost is not None:
            return
        if exchange.client_finished and not client.pending:
            self._leave(CloseReason.CLIENT_LOST, flush=True)
            return
        if exchange.backlogged or backend.pending or client.pending or rounds == ROUNDS:
            client.pause()
        else:
            client.resume()
        if exchange.state is State.UPDATE:
            return  # whatever comes of the answer puts nothing off
        timeouts = self._context.timeouts
        patience = timeouts.idle if exchange.idle else timeouts.stall
        if client.pending:
            patience = often(timeouts.stall)
        self.deadline = self._context.deadlines.now + patience

    def _send_commands(self) -> bool:
        """Hand on commands. False if there is no backend for them any more."""
        if self._is_over():
            return False
        exchange = self._exchange
        if self._lost is not None:
            if not exchange.idle:
                self._tell_and_leave(self._lost)
            elif exchange.client_finished:
                self._leave(self._lost)
            return False
        commands = exchange.commands_to_send(client_drained=not self._client.pending)
        if commands:
            self._books.asked(len(commands))
            if exchange.state is State.UPDATE:
                self._books.updating()
                self._quit_sent = self._context.deadlines.now
                self.deadline = self._quit_sent + min(GONE_CLIENT_WAITS, self._context.timeouts.update)
            self._backend.write(commands)
        return not self._is_over() and self._lost is None

    def _send_answers(self) -> bool:
        """Hand on the proxy's own answers whose turn has come. True if there were any."""
        answers = self._exchange.local_answers()
        if not answers:
            return False
        self._client.write(answers)
        self._books.sent(len(answers))
        self._record()
        return True

    def _is_over(self) -> bool:
        return self._ended is None

    def _record(self, *, delivered: bool = True) -> None:
        """Account for the replies that are now complete, and `delivered` to the client's socket."""
        answered = self._books.complete(delivered=delivered)
        if answered is not None:
            self._updated(answered)

    # ---- ends ----

    def _updated(self, event: Exchanged) -> None:
        """The backend has answered QUIT."""
        self._backend.close()
        self._books.updated("committed" if event.ok else "refused")
        self._finish(CloseReason.LOGOUT if event.ok else CloseReason.UPDATE_REFUSED)
        # the record first, then the client's +OK
        self._context.audit.commit_then(lambda _written: self._say_last(event.reply))

    def _say_last(self, reply: bytes) -> None:
        self._client.write(reply)
        # what a client sends behind QUIT nobody reads; closing on it would be a RST, and may cost it the +OK
        self._client.close(linger=self._client.has_unread)

    def _backend_gone(self, why: str, reason: CloseReason = CloseReason.BACKEND_LOST) -> None:
        """No backend any more. R3, R4, R5."""
        self._send_lone_reply()
        if self._ended is None or self._lost is not None:
            return
        self._backend.abort()
        exchange = self._exchange
        self._books.backend_gone("update" if self.updating else "relay", why)
        if self.updating:
            self._books.updated("unknown")
            self._finish(CloseReason.UPDATE_UNKNOWN)
            self._say(replies.err("update outcome unknown, the server did not answer QUIT", "SYS/TEMP"))
            return
        if exchange.inside_body:
            self._leave(reason, flush=True)
        elif not exchange.idle:
            self._tell_and_leave(reason)
        elif exchange.client_finished:
            self._leave(reason)
        else:
            self._lost = reason  # between commands: the next one is answered
            self._client.resume()

    def _tell_and_leave(self, reason: CloseReason) -> None:
        self._finish(reason)
        self._say(replies.err("the mail server is gone, nothing was deleted", "SYS/TEMP"))

    def _say(self, reply: bytes) -> None:
        self._books.trouble_told()
        self._client.write(reply)
        self._client.close(linger=True)

    def _leave(self, reason: CloseReason, *, flush: bool = False) -> None:
        """End without UPDATE: the backend by RST, the client with what is queued for it, or at once."""
        if self._ended is None:
            return
        self._books.cut()
        self._backend.abort()
        cut = self._exchange.inside_body
        self._finish(reason)
        if flush:
            self._client.close(notify=not cut)
        else:
            self._client.abort()

    def _finish(self, reason: CloseReason) -> None:
        ended, self._ended = self._ended, None
        if ended is None:
            return
        deadlines = self._context.deadlines
        self._record(delivered=False)
        deadlines.discard(self)
        self._books.closed(reason, deadlines.exact() - self._started)
        ended(reason)

    def deadline_passed(self) -> None:
        """Nothing has moved for too long."""
        exchange, timeouts, now = self._exchange, self._context.timeouts, self._context.deadlines.now
        if exchange.state is State.UPDATE:
            left = self._quit_sent + timeouts.update - now
            if left > 0 and not self._client.left:
                self.deadline = now + min(GONE_CLIENT_WAITS, left)
            else:
                self._backend_gone("timeout")
        elif self._client.pending:
            if self._pace.stuck(self._client.unacknowledged, now, timeouts.stall):
                self._leave(CloseReason.CLIENT_STALL)
            else:
                self.deadline = now + often(timeouts.stall)
        elif exchange.idle:
            # RFC 1939 section 3: no UPDATE, and no answer either
            self._leave(self._lost or CloseReason.IDLE, flush=True)
        else:
            self._backend_gone("stall", CloseReason.BACKEND_STALL)

    def tap(self, tap: Tap) -> None:
        """Have the client's dialogue go by `tap` from now on; bodies are not spliced any more where they would be."""
        self.untap()
        self._splice = None
        channel = self._client
        self._client = TappedChannel.on(channel, tap, lambda: self._exchange.idle and not self._reply)
        if channel.receiver is self:
            self._client.receiver = self

    def untap(self) -> None:
        """No longer."""
        if isinstance(self._client, TappedChannel):
            self._client = self._client.channel
            if self._client.receiver is not NOBODY:
                self._client.receiver = self

    def check_pace(self) -> None:
        """Each octet of a reply puts the deadline off, but an octet a minute would hold everything for years."""
        client = self._client
        if not (self._exchange.inside_body or client.pending):
            self._pace.between_replies()
            return
        moved = self._books.bytes_out - client.unacknowledged  # what its system has; ours may hold megabytes
        if not self._pace.too_slow(moved, self._context.deadlines.now, self._context.timeouts.stall):
            return
        if client.pending:
            self._leave(CloseReason.CLIENT_STALL)
        else:
            self._backend_gone("stall", CloseReason.BACKEND_STALL)

    def failed(self) -> None:
        """See Timed."""
        self._client.failed()

    @property
    def octets(self) -> tuple[int, int]:
        """From the client, and to it, so far."""
        return self._books.bytes_in, self._books.bytes_out

    @property
    def updating(self) -> bool:
        """QUIT has gone to the backend, and its answer is not there yet."""
        return self._exchange.state is State.UPDATE

    def shut_down(self, reason: CloseReason = CloseReason.SHUTDOWN, why: str = "shutting down") -> None:
        """The process ends, or an operator wants this session to: R1, R3, R4."""
        if self._ended is None:
            return
        if self.updating:
            self._backend_gone("other")
        elif self._exchange.inside_body:
            self._leave(reason, flush=True)
        else:
            self._backend.abort()
            self._finish(reason)
            self._say(replies.err(f"{why}, nothing was deleted", "SYS/TEMP"))


class _BackendSide:
    """Receives from the backend for a relay."""

    __slots__ = ("_relay", "data_received")

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.data_received = relay.backend_data

    def eof_received(self) -> None:
        self._relay.backend_lost("eof")

    def drained(self) -> None:
        self._relay.backend_drained()

    def connection_lost(self, reason: str) -> None:
        self._relay.backend_lost(reason)
