"""From a pool to an open maildrop: connect, TLS, greeting, login.

What fails before the first octet of a credential has been sent is tried again at the next server; after it, nothing is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from popproxy.backend.access_tokens import give_token
from popproxy.backend.kerberos_logins import make_token, protect
from popproxy.backend.pins import check_pin
from popproxy.backend.pool import Backend, Pool
from popproxy.config.model import Timeouts
from popproxy.errors import BackendError, ChannelClosed, ConnectFailed, TlsFailed
from popproxy.net.channel import NOT_REACHED, Channel
from popproxy.net.connect import Resolver, connect
from popproxy.net.deadlines import Deadlines
from popproxy.net.reactor import Reactor
from popproxy.observe.logs import get_logger
from popproxy.observe.metrics import Metrics
from popproxy.pop3.client import ClientConnection
from popproxy.pop3.client_events import AccessTokenNeeded, Event, LoggedIn, Refused, StartTls
from popproxy.pop3.logins import Bearer, Gssapi, Login
from popproxy.types import Address
from popproxy.wire.xclient import Visitor, xclient

log = get_logger("backend")


@dataclass(frozen=True, slots=True)
class Opened:
    """An open maildrop: the channel is ours, at the beginning of TRANSACTION, with nothing unread."""

    channel: Channel
    backend: Backend
    peer: Address
    login: Login


@dataclass(frozen=True, slots=True)
class NotOpened:
    """The server refused the login. `code` as in `Refused`."""

    backend: Backend
    login: Login
    code: str | None


class _Dialogue:
    """Drives a core over a channel until it has something to say. A receiver, with three deadlines one after the other.

    The first octets prove that the connection has come about. A server that has let us in and greets late may be slow,
    and gets the time for all attempts; then it gets the time for logging in.
    """

    __slots__ = ("_by", "channel", "core", "deadline", "heard_at", "waiter")

    def __init__(
        self,
        channel: Channel,
        core: ClientConnection,
        loop: asyncio.AbstractEventLoop,
        connect_by: float,
        greet_by: float,
        login_seconds: float,
    ) -> None:
        self.channel = channel
        self.core = core
        self.deadline = connect_by
        self.heard_at = 0.0  # loop time of the greeting
        self.waiter: asyncio.Future[Event] = loop.create_future()
        self._by = (greet_by, login_seconds)
        channel.receiver = self

    def data_received(self, buffer: bytearray, end: int) -> None:
        if self.waiter.done():
            self._fail(BackendError("octets that answer nothing", self.core.stage, "protocol"))
            return
        if not self.heard_at:
            self.heard_at = self.waiter.get_loop().time()
            self.deadline = self.heard_at + self._by[1]
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


class Dialer:
    """Opens maildrops. One for the process."""

    def __init__(
        self, reactor: Reactor, deadlines: Deadlines, resolver: Resolver, timeouts: Timeouts, metrics: Metrics
    ) -> None:
        self._reactor = reactor
        self._deadlines = deadlines
        self._resolver = resolver
        self._timeouts = timeouts
        self._metrics = metrics

    async def open_maildrop(
        self, pool: Pool, logins: Sequence[Login], visitor: Visitor | None = None
    ) -> Opened | NotOpened:
        """Log in at the first server of the pool that can be reached; `visitor` is whom it is told of.

        Raises BackendError (of the last one tried).
        """
        loop = self._reactor.loop
        give_up = loop.time() + self._timeouts.connect_total
        failure: BackendError | None = None
        try:
            for backend in pool.backends:
                try:
                    addresses = self._resolver.known(backend.address) or await self._resolve(pool, backend)
                except BackendError as error:
                    failure = self._failed(backend, error)
                    if loop.time() >= give_up:
                        raise
                    continue
                for address in addresses:
                    core = ClientConnection(
                        logins, stls=pool.config.tls == "stls", known=backend.known(loop.time()),
                        xclient=b"" if visitor is None else xclient(visitor),
                    )  # fmt: skip
                    try:
                        return await self._try(pool, backend, address, core, give_up)
                    except BackendError as error:
                        failure = self._failed(backend, error)
                        if core.credential_sent or loop.time() >= give_up:
                            raise
            assert failure is not None
            raise failure
        finally:
            del failure  # its traceback holds this frame, and that the passwords

    async def _resolve(self, pool: Pool, backend: Backend) -> list[Address]:
        if pool.transport is not None and pool.transport.resolves:
            return [backend.address]
        try:
            async with asyncio.timeout(self._timeouts.connect):
                return await self._resolver.resolve(backend.address)
        except ConnectFailed as error:
            raise BackendError(str(error), "connect", error.reason) from None
        except TimeoutError:
            if stale := self._resolver.stale(backend.address):
                return stale
            raise BackendError("the name service does not answer", "connect", "dns") from None

    async def _try(
        self, pool: Pool, backend: Backend, address: Address, core: ClientConnection, give_up: float
    ) -> Opened | NotOpened:
        loop = self._reactor.loop
        started = loop.time()
        connect_by = min(started + self._timeouts.connect, give_up)
        channel = await self._connect(pool, backend, address, connect_by)
        event: LoggedIn | Refused | None = None
        dialogue = _Dialogue(channel, core, loop, connect_by, give_up, self._timeouts.backend_login)
        self._deadlines.add(dialogue)
        try:
            event = await self._talk(pool, backend, dialogue)
        finally:
            self._deadlines.discard(dialogue)
            if not isinstance(event, LoggedIn):
                channel.abort()  # R3: no QUIT, and nothing buffered may be read as a command
                del dialogue.waiter  # it holds the exception, whose traceback holds this frame
        metrics, label = self._metrics, backend.label
        metrics.backend_connect_duration.observe(label, dialogue.heard_at - started)
        metrics.backend_login_duration.observe(label, loop.time() - dialogue.heard_at)
        metrics.backend_up[label] = 1
        if isinstance(event, Refused):
            _tell_source(event)
            return NotOpened(backend, event.login, event.code)
        if event.learned is not None:
            backend.learn(event.learned, loop.time())
        if event.protection is not None:
            protect(channel, event.protection)
        return Opened(channel, backend, address, event.login)

    async def _connect(self, pool: Pool, backend: Backend, address: Address, deadline: float) -> Channel:
        """A channel on its way to the server; with implicit TLS, one that is there."""
        try:
            if pool.transport is None:
                channel = connect(self._reactor, address, pool.config.source_address)
            else:
                channel = await pool.transport.open(address, deadline)
        except ConnectFailed as error:
            raise BackendError(str(error), "connect", error.reason) from None
        if pool.config.tls == "implicit":
            unreachable = self._reactor.loop.call_at(deadline, _give_up_connecting, channel)
            try:
                async with asyncio.timeout_at(deadline + self._timeouts.handshake):
                    await self._start_tls(pool, backend, channel)
            except TimeoutError:
                channel.abort()
                raise BackendError("no TLS handshake in time", "tls", "timeout") from None
            except BaseException:
                channel.abort()
                raise
            finally:
                unreachable.cancel()
        return channel

    async def _talk(self, pool: Pool, backend: Backend, dialogue: _Dialogue) -> LoggedIn | Refused:
        core, gss = dialogue.core, None
        event = await dialogue.waiter
        while not isinstance(event, LoggedIn | Refused):
            if isinstance(event, StartTls):
                await self._start_tls(pool, backend, dialogue.channel)
                core.upgrade_to_tls()
            elif isinstance(event, AccessTokenNeeded):
                await give_token(dialogue.channel, core, event)
            else:
                gss = await make_token(pool, backend, dialogue.channel, core, event, gss, self._metrics)
            dialogue.waiter = self._reactor.loop.create_future()
            dialogue.go_on()
            event = await dialogue.waiter
        return event

    async def _start_tls(self, pool: Pool, backend: Backend, channel: Channel) -> None:
        name = pool.config.server_name or backend.address.host
        try:
            await channel.connect_tls(pool.tls, name)
            check_pin(pool, channel)
        except TlsFailed as error:
            log.error("TLS to a backend failed", backend=backend.label, why=str(error))
            raise BackendError(str(error), "tls", "tls") from None
        except ChannelClosed as error:
            stage = "connect" if error.reason in NOT_REACHED.values() else "tls"
            raise BackendError(str(error), stage, error.reason) from None

    def _failed(self, backend: Backend, error: BackendError) -> BackendError:
        self._metrics.backend_errors[(backend.label, error.stage, error.reason)] += 1
        self._metrics.backend_up[backend.label] = 0
        log.warning("backend failed", backend=backend.label, stage=error.stage, reason=error.reason, why=str(error))
        return error


class _Source(Protocol):
    """Where tickets and tokens come from."""

    def refused(self) -> None:
        """The server does not take it."""
        ...


def _tell_source(event: Refused) -> None:
    """The server does not let somebody in: perhaps its key is another now, so ask for a new ticket or token next time.

    A maildrop that is in use says nothing of the kind.
    """
    if isinstance(event.login, Bearer | Gssapi) and event.code in (None, "AUTH", "SYS/PERM"):
        cast("_Source", event.login.source).refused()


def _give_up_connecting(channel: Channel) -> None:
    if not channel.connected:
        channel.abort("timeout")
