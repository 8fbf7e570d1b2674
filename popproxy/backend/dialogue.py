"""A core that talks to a server over a channel, with deadlines."""

from __future__ import annotations

import asyncio
from typing import Protocol

from popproxy.errors import BackendError, Overtaken, PopproxyError
from popproxy.net.channel import NOT_REACHED, Channel
from popproxy.pop3.client import ClientConnection
from popproxy.pop3.client_events import Event


class Turn(Protocol):
    """The place of an attempt among others of the same login, at other servers."""

    counted: bool
    """Its failure is known to the pool."""

    @property
    def alone(self) -> bool:
        """None of the others is left."""
        ...

    def claim(self) -> bool:
        """It is about to send a credential. May it? Then nobody else may any more."""
        ...

    def late(self) -> bool:
        """The server has let us in, and its greeting is late. Shall we go on waiting?"""
        ...


class Dialogue:
    """Drives a core over a channel until it has something to say. A receiver, with three deadlines one after the other.

    The first octets prove that the connection has come about. A server that has let us in and greets late may be slow,
    and gets the time for all attempts; then it gets the time for logging in. If there are others, which is when it has
    a `turn`, it gets that only once it may send a credential, or is the last one left.
    """

    __slots__ = ("_by", "_turn", "channel", "core", "deadline", "heard_at", "waiter")

    def __init__(
        self,
        channel: Channel,
        core: ClientConnection,
        loop: asyncio.AbstractEventLoop,
        connect_by: float,
        greet_by: float,
        login_seconds: float,
        turn: Turn | None = None,
    ) -> None:
        self.channel = channel
        self.core = core
        self.deadline = connect_by
        self.heard_at = 0.0  # loop time of the greeting
        self.waiter: asyncio.Future[Event] = loop.create_future()
        self._by = (greet_by, login_seconds)
        self._turn = turn  # None: there are no others, or it may send credentials
        channel.receiver = self

    def data_received(self, buffer: bytearray, end: int) -> None:
        if self.waiter.done():
            self._fail(BackendError("octets that answer nothing", self.core.stage, "protocol"))
            return
        if not self.heard_at:
            self.heard_at = self.waiter.get_loop().time()
            self.deadline = self.heard_at + self._by[1] if self._turn is None else self._by[0]
        try:
            self.core.receive_data(memoryview(buffer)[:end])
        except BackendError as error:
            self._fail(error)
            return
        self.go_on()

    def deadline_passed(self) -> None:
        turn = self._turn
        if self.deadline < self._by[0] and not self.heard_at and self.channel.connected:
            self.deadline = self._by[0]
            if turn is None or turn.late():
                return
        if turn is not None and self.heard_at and turn.alone:
            self._turn = None
            self.deadline = self.heard_at + self._by[1]
            return
        self._fail(BackendError("no answer in time", self._stage(self.channel.connected), "timeout"))
        self.channel.abort("timeout")

    def check_pace(self) -> None:
        """The time for the login is for all of it."""

    def failed(self) -> None:
        """See Timed."""
        self.channel.failed()

    def go_on(self) -> None:
        """Send what the core has to say, and pass on what it asks for."""
        data = self.core.data_to_send()
        if data:
            if self._turn is not None and self.core.credential_sent and not self._claim(self._turn):
                return
            self.channel.write(data)
        for event in self.core.events_received():
            self.waiter.set_result(event)

    def _claim(self, turn: Turn) -> bool:
        if not turn.claim():
            self._fail(Overtaken("another server was ready first"))
            return False
        self._turn = None
        self.deadline = self.heard_at + self._by[1]
        return True

    def eof_received(self) -> None:
        if self.waiter.done():
            self.channel.abort()
            return
        try:
            self.core.receive_eof()
        except BackendError as error:
            self._fail(error)
            return
        for event in self.core.events_received():
            self.waiter.set_result(event)
        if not self.waiter.done():
            self._fail(BackendError("connection closed", self.core.stage, "eof"))

    def drained(self) -> None:
        pass

    def connection_lost(self, reason: str) -> None:
        self._fail(BackendError("connection lost", self._stage(reason not in NOT_REACHED.values()), reason))

    def _stage(self, connected: bool) -> str:
        return self.core.stage if connected or self.heard_at else "connect"

    def _fail(self, error: PopproxyError) -> None:
        if not self.waiter.done():
            self.waiter.set_exception(error)
        else:
            self.channel.abort()  # noticed by whoever takes the channel over
