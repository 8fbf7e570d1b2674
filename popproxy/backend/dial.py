"""From a pool to an open maildrop: connect, TLS, greeting, login.

What fails before the first octet of a credential has been sent is tried again at the next server; after it, nothing is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

from popproxy.backend.access_tokens import give_token
from popproxy.backend.breaker import Circuit
from popproxy.backend.kerberos_logins import make_token, protect
from popproxy.backend.pins import check_pin
from popproxy.backend.places import Place
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
from popproxy.pop3.probe import ProbeConnection
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


class _Attempt:
    """A login at one server of a pool, until loop time `give_up`. `others`: there are more to go on with."""

    __slots__ = ("backend", "give_up", "late", "others", "place", "pool")

    def __init__(self, pool: Pool, backend: Backend, give_up: float, others: bool) -> None:
        self.pool = pool
        self.backend = backend
        self.give_up = give_up
        self.others = others
        self.late = False  # it has been counted as a failure already
        self.place: Place | None = None  # of the connection, where there are limits


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
        self, pool: Pool, logins: Sequence[Login], user: str, server: Address | None = None,
        visitor: Visitor | None = None,
    ) -> Opened | NotOpened:  # fmt: skip
        """Log in at the first server of the pool that can be reached; `user` is the name there.

        `server` is the one where a directory says that his mail is, `visitor` whom it is told of. Raises BackendError
        (of the last one tried).
        """
        loop = self._reactor.loop
        place: Place | None = None
        if pool.places is None:
            backends = pool.candidates(user, server, loop.time())
        else:
            backends, place = await pool.enter(user, server, loop.time())
        failure: BackendError | None = None
        try:
            for number, backend in enumerate(backends):
                attempt = _Attempt(
                    pool, backend, loop.time() + self._timeouts.connect_total, number + 1 < len(backends)
                )
                try:
                    addresses = self._resolver.known(backend.address) or await self._resolve(pool, backend)
                except BackendError as error:
                    failure = self._failed(attempt, error)
                    if place is not None:
                        place.release()
                        place = None  # it was one at this server
                    continue
                for address in addresses:
                    if pool.places is not None:
                        place = place or pool.places.take(backend.member)
                        if place is None:
                            break  # others have taken the last one meanwhile
                        attempt.place, place = place, None
                    core = ClientConnection(
                        logins, stls=pool.config.tls == "stls", known=backend.known(loop.time()),
                        xclient=b"" if visitor is None else xclient(visitor),
                    )  # fmt: skip
                    try:
                        return await self._try(attempt, address, core)
                    except BackendError as error:
                        failure = self._failed(attempt, error)
                        if core.credential_sent:
                            raise
                    if loop.time() >= attempt.give_up:
                        break
            if failure is None:
                raise BackendError("no place at the other servers", "connect", "limit")
            raise failure
        finally:
            del failure  # its traceback holds this frame, and that the passwords
            if place is not None:
                place.release()

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

    async def probe(self, pool: Pool, backend: Backend, logins: Sequence[Login], seconds: float) -> None:
        """Find out whether the server works, as far as greeting and TLS, or by one of `logins`. Raises BackendError."""
        attempt = _Attempt(pool, backend, self._reactor.loop.time() + seconds, others=False)
        up = 0
        try:
            async with asyncio.timeout(seconds):
                addresses = self._resolver.known(backend.address) or await self._resolve(pool, backend)
                for number, address in enumerate(addresses, 1):
                    try:
                        await self._probe(attempt, address, logins, seconds)
                    except BackendError:
                        if number == len(addresses):
                            raise
                    else:
                        break
            up = 1
        except TimeoutError:
            raise BackendError("the check has no answer in time", "greeting", "timeout") from None
        finally:
            self._metrics.backend_up[backend.label] = up

    async def _probe(self, attempt: _Attempt, address: Address, logins: Sequence[Login], seconds: float) -> None:
        stls = attempt.pool.config.tls == "stls"
        core = ClientConnection(logins, stls=stls) if logins else ProbeConnection(stls=stls)
        event, dialogue = await self._reach(attempt, address, core, seconds)
        if isinstance(event, Refused):
            raise BackendError("the login of the check is refused", "login", "rejected")
        core.leave()
        dialogue.send()
        dialogue.channel.close(linger=True)

    async def _try(self, attempt: _Attempt, address: Address, core: ClientConnection) -> Opened | NotOpened:
        loop = self._reactor.loop
        pool, backend, member = attempt.pool, attempt.backend, attempt.backend.member
        started = loop.time()
        on_trial = member.breaker.circuit is Circuit.ON_TRIAL and not member.trial
        member.trial = member.trial or on_trial
        try:
            event, dialogue = await self._reach(attempt, address, core, self._timeouts.backend_login)
        finally:
            if on_trial:
                member.trial = False
        metrics, label = self._metrics, backend.label
        metrics.backend_connect_duration.observe(label, dialogue.heard_at - started)
        metrics.backend_login_duration.observe(label, loop.time() - dialogue.heard_at)
        metrics.backend_up[label] = 1
        if isinstance(event, Refused):
            if event.code is None or not event.code.startswith("SYS/"):
                pool.worked(backend, loop.time())
            _tell_source(event)
            return NotOpened(backend, event.login, event.code)
        if not member.breaker.calm:
            pool.worked(backend, loop.time())
        if event.learned is not None:
            backend.learn(event.learned, loop.time())
        if event.protection is not None:
            protect(dialogue.channel, event.protection)
        return Opened(dialogue.channel, backend, address, event.login)

    async def _reach(
        self, attempt: _Attempt, address: Address, core: ClientConnection, login_seconds: float
    ) -> tuple[LoggedIn | Refused, _Dialogue]:
        """Connect, and let `core` talk to the server. The channel is open if it has logged in."""
        loop = self._reactor.loop
        event: LoggedIn | Refused | None = None
        connect_by = min(loop.time() + self._timeouts.connect, attempt.give_up)
        channel = await self._connect(attempt, address, connect_by)
        late = partial(self._greets_late, attempt) if attempt.others else None
        dialogue = _Dialogue(channel, core, loop, connect_by, attempt.give_up, login_seconds, late)
        self._deadlines.add(dialogue)
        try:
            event = await self._talk(attempt.pool, attempt.backend, dialogue)
        finally:
            self._deadlines.discard(dialogue)
            if not isinstance(event, LoggedIn):
                channel.abort()  # R3: no QUIT, and nothing buffered may be read as a command
                del dialogue.waiter  # it holds the exception, whose traceback holds this frame
        return event, dialogue

    async def _connect(self, attempt: _Attempt, address: Address, deadline: float) -> Channel:
        """A channel on its way to the server; with implicit TLS, one that is there."""
        pool, place = attempt.pool, attempt.place
        try:
            ended = None if place is None else place.release
            if pool.transport is None:
                channel = connect(self._reactor, address, pool.config.source_address, ended)
            else:
                channel = await pool.transport.open(address, deadline, ended)
        except BaseException as error:
            if place is not None:
                place.release()
            if isinstance(error, ConnectFailed):
                raise BackendError(str(error), "connect", error.reason) from None
            raise
        if pool.config.tls == "implicit":
            unreachable = self._reactor.loop.call_at(deadline, _give_up_connecting, channel)
            try:
                async with asyncio.timeout_at(deadline + self._timeouts.handshake):
                    await self._start_tls(pool, attempt.backend, channel)
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

    def _greets_late(self, attempt: _Attempt) -> None:
        """It has let us in and says nothing. We go on waiting, but others should not have to."""
        late = BackendError("no greeting in time", "greeting", "timeout")
        attempt.pool.failed(attempt.backend, late, self._reactor.loop.time())
        attempt.late = True

    def _failed(self, attempt: _Attempt, error: BackendError) -> BackendError:
        backend = attempt.backend
        self._metrics.backend_errors[(backend.label, error.stage, error.reason)] += 1
        self._metrics.backend_up[backend.label] = 0
        log.warning("backend failed", backend=backend.label, stage=error.stage, reason=error.reason, why=str(error))
        if not attempt.late:  # else it has been counted
            attempt.pool.failed(backend, error, self._reactor.loop.time())
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
