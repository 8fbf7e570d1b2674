"""The octets of a client before its login: what they are given to, and what is said in return.

First may come a PROXY header, then KPOP's handshake, and then the core has everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Protocol

from popproxy.errors import LocalProtocolError, RemoteProtocolError
from popproxy.net.channel import Channel
from popproxy.observe.logs import get_logger
from popproxy.pop3 import replies
from popproxy.pop3.server import ServerConnection
from popproxy.pop3.server_events import Event
from popproxy.session.caller import Caller
from popproxy.session.context import ListenerContext
from popproxy.types import CloseReason
from popproxy.wire import kpop
from popproxy.wire.proxy_protocol import ProxyHeader, ProxyHeaderParser

UNREAD_LIMIT = 64 * 1024
"""Octets of answers before the login that a client may leave unread; one octet of a command can ask for thirty."""

log = get_logger("session")


class Follower(Protocol):
    """Who decides what happens next."""

    def awake(self) -> None:
        """An event has come, and nobody has ever waited for one."""
        ...

    def cancel(self, reason: CloseReason) -> None:
        """The session cannot go on."""
        ...


class Dialogue:
    """A client's channel, of which it is the receiver, and who reads what comes there. Metrics count what is said.

    `core` is there from the greeting on, `events` are its own that nobody has taken yet.
    """

    __slots__ = (
        "_bytes_in", "_bytes_out", "_caller", "_context", "_follower", "_header", "_kpop", "_waiter", "channel",
        "core", "events",
    )  # fmt: skip

    def __init__(self, context: ListenerContext, caller: Caller, sock: socket.socket, follower: Follower) -> None:
        self._context = context
        self._caller = caller
        self._follower: Follower | None = follower
        self.channel = Channel(context.reactor, sock, self)
        self.core: ServerConnection | None = None
        self.events: list[Event] = []
        self._bytes_in = self._bytes_out = 0
        self._header: ProxyHeaderParser | None = None
        self._kpop: kpop.KpopHandshake | None = None
        self._waiter: asyncio.Future[None] | None = None

    # ---- one reader after the other ----

    async def read_header(self) -> ProxyHeader:
        """The PROXY header at the very beginning. What comes behind it is not read yet."""
        parser = self._header = ProxyHeaderParser()
        while parser.result is None:
            await self.wait()
        return parser.result

    def take_rest(self) -> bytes:
        """What has been read behind the PROXY header, for TLS or the next reader."""
        header, self._header = self._header, None
        return b"" if header is None else header.rest

    async def hear_ticket(self) -> tuple[kpop.KpopHandshake, kpop.Event]:
        """KPOP's handshake, up to the moment at which somebody must judge it."""
        handshake = self._kpop = kpop.KpopHandshake()
        handshake.receive_data(self.take_rest())
        self.channel.resume()
        while not (events := handshake.events_received()):
            self.say(handshake.data_to_send())
            await self.wait()
        self.say(handshake.data_to_send())
        return handshake, events[0]

    def greet(self, core: ServerConnection) -> None:
        """Give the client the greeting, and everything that it says to `core` from now on."""
        rest = self.take_rest()
        handshake, self._kpop = self._kpop, None
        self.core = core
        core.greet(self._context.listener.banner)
        if rest:
            core.receive_data(rest)
        if handshake is not None:
            core.receive_data(handshake.rest)
            if handshake.eof:
                core.receive_eof()
        self.channel.resume()
        self.go_on()

    async def wait(self) -> None:
        """Until something has happened: return then, and look."""
        self._waiter = self._context.reactor.loop.create_future()
        await self._waiter

    def go_on(self) -> None:
        """Say what the core has to say, and tell if it has an event."""
        core = self.core
        assert core is not None
        self.say(core.data_to_send())
        if core.commands:
            commands = self._context.relay.metrics.commands
            for verb, answered in core.commands:
                commands[(verb, "ok" if answered else "err")] += 1
            core.commands.clear()
        events = core.events_received()
        if events:
            self.events += events
            self._wake()
        if core.backlogged:
            self.channel.pause()
        elif not self.channel.reading:
            self.channel.resume()

    def say(self, data: bytes) -> None:
        """To the client. One that does not read is left."""
        if data:
            self._bytes_out += len(data)
            self._context.relay.metrics.bytes_to_client += len(data)
            self.channel.write(data)
            if self.channel.pending > UNREAD_LIMIT:
                self.channel.abort()
                self._cancel(CloseReason.CLIENT_STALL)

    def deadline_passed(self) -> CloseReason | None:
        """The client has had its time; why that ends the session. None if it is KPOP's handshake that ends."""
        if self.channel.handshaking:
            return CloseReason.TLS
        if self._kpop is not None:
            with contextlib.suppress(LocalProtocolError):  # its AP-REQ has come in this very moment
                self._kpop.deadline_passed()
            self._wake()
            return None
        if self.core is None:
            return CloseReason.PROXY_HEADER
        self.say(replies.err("you took too long to log in"))
        return CloseReason.LOGIN_TIMEOUT

    @property
    def octets(self) -> tuple[int, int]:
        """From the client, and to it, so far."""
        return self._bytes_in, self._bytes_out

    def end(self) -> None:
        """Nobody follows it any more. The channel must have been closed, or have another receiver at once."""
        self.core = self._follower = None

    # ---- receiver ----

    def data_received(self, buffer: bytearray, end: int) -> None:
        """Octets before the login."""
        self._bytes_in += end
        data = memoryview(buffer)[:end]
        if self.core is not None:
            self.core.receive_data(data)
            self.go_on()
        elif self._kpop is not None:
            self._kpop.receive_data(data)
            if self._kpop.backlogged:
                self.channel.pause()
            self._wake()
        elif self._header is not None:
            try:
                self._header.feed(data)
            except RemoteProtocolError as error:
                caller = self._caller
                log.warning("PROXY header refused", session=caller.session, client=str(caller.source), why=str(error))
                self._cancel(CloseReason.PROXY_HEADER)
                return
            if self._header.result is not None:
                self.channel.pause()  # what follows belongs to TLS or to the greeting
                self._wake()

    def eof_received(self) -> None:
        """The client will send no more, but may still read."""
        if self.core is not None:
            self.core.receive_eof()
            self.go_on()
        elif self._kpop is not None:
            self._kpop.receive_eof()
            self._wake()
        else:
            self._cancel(CloseReason.CLIENT_LOST)

    def drained(self) -> None:
        """All that was said is in the client's socket."""

    def connection_lost(self, reason: str) -> None:
        """The client is gone."""
        self._cancel(CloseReason.INTERNAL if reason == "internal" else CloseReason.CLIENT_LOST)

    def _wake(self) -> None:
        if self._waiter is None:
            if self._follower is not None:
                self._follower.awake()
        elif not self._waiter.done():
            self._waiter.set_result(None)

    def _cancel(self, reason: CloseReason) -> None:
        if self._follower is not None:
            self._follower.cancel(reason)
