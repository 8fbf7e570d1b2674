"""From a pool to an open maildrop, and from a server to whether it works; what comes of it is counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Protocol, cast

from popproxy.backend.breaker import Circuit
from popproxy.backend.dialogue import Turn
from popproxy.backend.kerberos_logins import protect
from popproxy.backend.link import Attempt, Linker, NotOpened, Opened
from popproxy.backend.places import Place
from popproxy.backend.pool import Backend, Pool
from popproxy.backend.search import Search
from popproxy.config.model import Timeouts
from popproxy.errors import BackendError, ConnectFailed
from popproxy.net.deadlines import Deadlines
from popproxy.net.names import Resolver
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


class Dialer:
    """Opens maildrops. One for the process."""

    def __init__(
        self, reactor: Reactor, deadlines: Deadlines, resolver: Resolver, timeouts: Timeouts, metrics: Metrics
    ) -> None:
        self._reactor = reactor
        self._linker = Linker(reactor, deadlines, timeouts, metrics)
        self._resolver = resolver
        self._lanes: set[asyncio.Task[None]] = set()  # attempts of searches, also of those that are over
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
        if not pool.backends:
            await self._found(pool)
        place: Place | None = None
        if pool.places is None:
            backends = pool.candidates(user, server, loop.time())
        else:
            backends, place = await pool.enter(user, server, loop.time())
        seconds = self._timeouts.connect_total
        if len(backends) == 1:
            addresses = self._known(pool, backends[0])
            if addresses is not None and len(addresses) == 1:
                attempt = Attempt(pool, backends[0], loop.time() + seconds, visitor, place=place)
                return await self._log_in(logins, attempt, addresses[0])
        log_in = partial(self._log_in, logins)
        return await Search(pool, backends, place, seconds, visitor, self._where, log_in, self._lanes).run()

    async def close(self) -> None:
        """End what nobody waits for any more."""
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)

    async def _found(self, pool: Pool) -> None:
        """Wait a moment until it is known which servers there are."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeouts.connect):
                await pool.found.wait()

    async def _where(self, pool: Pool, backend: Backend) -> list[Address]:
        """Where it is; what fails is counted. Raises BackendError."""
        try:
            return self._known(pool, backend) or await self._resolve(backend)
        except BackendError as error:
            self._failed(pool, backend, error)
            raise

    def _known(self, pool: Pool, backend: Backend) -> list[Address] | None:
        way = pool.way_to(backend)
        return [backend.address] if way is not None and way.resolves else self._resolver.known(backend.address)

    async def _resolve(self, backend: Backend) -> list[Address]:
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
        attempt = Attempt(pool, backend, self._reactor.loop.time() + seconds)
        up = 0
        try:
            async with asyncio.timeout(seconds):
                addresses = self._known(pool, backend) or await self._resolve(backend)
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
        dialogue.go_on()
        dialogue.channel.close(linger=True)

    async def _log_in(self, logins: Sequence[Login], attempt: Attempt, address: Address) -> Opened | NotOpened:
        """One attempt; what fails is counted. Raises BackendError, Overtaken."""
        config, visitor = attempt.pool.config, attempt.visitor
        core = ClientConnection(
            logins, stls=config.tls == "stls", known=attempt.backend.known(self._reactor.loop.time()),
            xclient=xclient(visitor) if config.xclient and visitor is not None else b"",
        )  # fmt: skip
        try:
            return await self._try(attempt, address, core)
        except BackendError as error:
            self._failed(attempt.pool, attempt.backend, error, attempt.turn)
            raise

    async def _try(self, attempt: Attempt, address: Address, core: ClientConnection) -> Opened | NotOpened:
        loop = self._reactor.loop
        pool, backend, member = attempt.pool, attempt.backend, attempt.backend.member
        started = loop.time()
        on_trial = member.breaker.circuit is Circuit.ON_TRIAL and not member.trial
        member.trial = member.trial or on_trial
        try:
            event, dialogue = await self._linker.reach(attempt, address, core, self._timeouts.backend_login)
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

    def _failed(self, pool: Pool, backend: Backend, error: BackendError, turn: Turn | None = None) -> None:
        self._metrics.backend_errors[(backend.label, error.stage, error.reason)] += 1
        self._metrics.backend_up[backend.label] = 0
        log.warning("backend failed", backend=backend.label, stage=error.stage, reason=error.reason, why=str(error))
        if turn is None or not turn.counted:
            pool.failed(backend, error, self._reactor.loop.time())


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
