"""From a pool to an open maildrop: which server, and which next.

What fails before the first octet of a credential has been sent is tried again at the next server; after it, nothing is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

from popproxy.backend.breaker import Circuit
from popproxy.backend.kerberos_logins import protect
from popproxy.backend.link import Attempt, Linker
from popproxy.backend.places import Place
from popproxy.backend.pool import Backend, Pool
from popproxy.config.model import Timeouts
from popproxy.errors import BackendError, ConnectFailed
from popproxy.net.channel import Channel
from popproxy.net.connect import Resolver
from popproxy.net.deadlines import Deadlines
from popproxy.net.reactor import Reactor
from popproxy.observe.logs import get_logger
from popproxy.observe.metrics import Metrics
from popproxy.pop3.client import ClientConnection
from popproxy.pop3.client_events import Refused
from popproxy.pop3.logins import Bearer, Gssapi, Login
from popproxy.pop3.probe import ProbeConnection
from popproxy.types import Address
from popproxy.wire.visitor import Visitor
from popproxy.wire.xclient import xclient

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


class Dialer:
    """Opens maildrops. One for the process."""

    def __init__(
        self, reactor: Reactor, deadlines: Deadlines, resolver: Resolver, timeouts: Timeouts, metrics: Metrics
    ) -> None:
        self._reactor = reactor
        self._linker = Linker(reactor, deadlines, timeouts, metrics)
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
                attempt = Attempt(
                    pool, backend, loop.time() + self._timeouts.connect_total, number + 1 < len(backends), visitor
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
                        xclient=xclient(visitor) if pool.config.xclient and visitor is not None else b"",
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
        attempt = Attempt(pool, backend, self._reactor.loop.time() + seconds, others=False)
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

    async def _probe(self, attempt: Attempt, address: Address, logins: Sequence[Login], seconds: float) -> None:
        stls = attempt.pool.config.tls == "stls"
        core = ClientConnection(logins, stls=stls) if logins else ProbeConnection(stls=stls)
        event, dialogue = await self._linker.reach(attempt, address, core, seconds)
        if isinstance(event, Refused):
            raise BackendError("the login of the check is refused", "login", "rejected")
        core.leave()
        dialogue.send()
        dialogue.channel.close(linger=True)

    async def _try(self, attempt: Attempt, address: Address, core: ClientConnection) -> Opened | NotOpened:
        loop = self._reactor.loop
        pool, backend, member = attempt.pool, attempt.backend, attempt.backend.member
        started = loop.time()
        on_trial = member.breaker.circuit is Circuit.ON_TRIAL and not member.trial
        member.trial = member.trial or on_trial
        try:
            late = partial(self._greets_late, attempt) if attempt.others else None
            event, dialogue = await self._linker.reach(attempt, address, core, self._timeouts.backend_login, late)
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

    def _greets_late(self, attempt: Attempt) -> None:
        """It has let us in and says nothing. We go on waiting, but others should not have to."""
        late = BackendError("no greeting in time", "greeting", "timeout")
        attempt.pool.failed(attempt.backend, late, self._reactor.loop.time())
        attempt.late = True

    def _failed(self, attempt: Attempt, error: BackendError) -> BackendError:
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
