"""A core that talks to a server over a channel, with deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from popproxy.errors import BackendError
from popproxy.net.channel import NOT_REACHED, Channel
from popproxy.pop3.client import ClientConnection
from popproxy.pop3.client_events import Event


class Dialogue:
    """Drives a core over a channel until it has something to say. A receiver, with three deadlines one after the other.

    The first octets prove that the connection has come about. A server that has let us in and greets late may be slow,
    and gets the time for all attempts; then it gets the time for logging in. If there are others to go on with, which
    is when there is a `late`, it gets that only once it has a credential; `late` is called when it greets late.
    """

    __slots__ = ("_by", "_late", "channel", "core", "deadline", "heard_at", "waiter")

    def __init__(
        self,
        channel: Channel,
        core: ClientConnection,
        loop: asyncio.AbstractEventLoop,
        connect_by: float,
        greet_by: float,
        login_seconds: float,
        late: Callable[[], None] | None = None,
    ) -> None:
        self.channel = channel
        self.core = core
        self.deadline = connect_by
        self.heard_at = 0.0  # loop time of the greeting
        self.waiter: asyncio.Future[Event] = loop.create_future()
        self._by = (greet_by, login_seconds)
        self._late = late  # None: there is no other server
        channel.receiver = self

    def data_received(self, buffer: bytearray, end: int) -> None:
        if self.waiter.done():
            self._fail(BackendError("octets that answer nothing", self.core.stage, "protocol"))
            return
        if not self.heard_at:
            self.heard_at = self.waiter.get_loop().time()
            self.deadline = self.heard_at + self._by[1] if self._late is None else self._by[0]
        try:
            self.core.receive_data(memoryview(buffer)[:end])
        except BackendError as error:
            self._fail(error)
            return
        self.send()
        for event in self.core.events_received():
            self.waiter.set_result(event)

    def deadline_passed(self) -> None:
        if self.deadline < self._by[0] and not self.heard_at and self.channel.connected:
            self.deadline = self._by[0]
            if self._late is not None:
                self._late()
            return
        if self._late is not None and self.core.credential_sent:
            self.deadline, self._late = self.heard_at + self._by[1], None
            return
        self._fail(BackendError("no answer in time", self._stage(self.channel.connected), "timeout"))
        self.channel.abort("timeout")

    def send(self) -> None:
        data = self.core.data_to_send()
        if data:
            self.channel.write(data)

    def go_on(self) -> None:
        """What the core has asked for is done; it may ask for the next thing at once."""
        self.send()
        for event in self.core.events_received():
            self.waiter.set_result(event)

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

    def _fail(self, error: BackendError) -> None:
        if not self.waiter.done():
            self.waiter.set_exception(error)
        else:
            self.channel.abort()  # noticed by whoever takes the channel over
