"""Pools and their servers as the running proxy knows them: where they are, what they can do, and how they are."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from popproxy.backend.balancer import Balancer, Choice, Member, Rules, State
from popproxy.backend.places import Place, Places
from popproxy.backend.transport import Transport
from popproxy.config.model_pools import Pool as PoolConfig
from popproxy.config.units import format_server
from popproxy.errors import BackendError
from popproxy.net.tls import client_context
from popproxy.pop3 import capabilities
from popproxy.state.shared import SharedState
from popproxy.types import Address, Secret

CAPA_MEMORY = 300.0
"""Seconds for which a server's CAPA answer saves the next sessions from asking."""
DEFAULT_PORTS = {"none": 110, "stls": 110, "implicit": 995}


class Backend:
    """One server of a pool. `label` names it in metrics, log and audit; `principal` is its name at the KDC."""

    __slots__ = ("_known", "_known_until", "address", "label", "member", "name", "principal")

    def __init__(self, address: Address, member: Member, principal: str = "", name: str = "") -> None:
        """`name` is the one that its certificate must carry; its host's if empty."""
        self.address = address
        self.name = name or address.host
        self.principal = principal.replace("{host}", self.name.lower())
        self.label = str(address)
        self.member = member
        self._known: capabilities.Capabilities | None = None
        self._known_until = 0.0

    def known(self, now: float) -> capabilities.Capabilities | None:
        """What the server said lately; {} if it has no CAPA, None if it must be asked."""
        return self._known if now < self._known_until else None

    def learn(self, found: capabilities.Capabilities, now: float) -> None:
        """Remember a CAPA answer."""
        self._known = found
        self._known_until = now + CAPA_MEMORY


_OURS = frozenset(("other", "layer"))
"""Reasons of failures for which the server is not to blame: no descriptor left here, say."""

Changed = Callable[["Pool", Backend, str], None]
"""Told that the state of a server has changed, and why."""


class Tokens(Protocol):
    """Where the access tokens of a pool come from: AccessTokens. Each source is what `Bearer` wants of one."""

    def own(self) -> object:
        """Popproxy's own token."""
        ...

    def of(self, user: str, refresh_token: Secret) -> object:
        """The user's."""
        ...


def pool_context(config: PoolConfig) -> ssl.SSLContext:
    """For TLS to a pool's servers. Raises OSError or ssl.SSLError for files that cannot be used."""
    pair = None if config.certificate is None else (config.certificate.cert, config.certificate.key)
    return client_context(ca=config.ca, verify=config.verify, certificate=pair, legacy=config.legacy_tls)


@dataclass(frozen=True, slots=True)
class Target:
    """A server that an SRV record names. `name` is the one that its certificate must carry."""

    address: Address
    priority: int
    weight: float
    name: str


class Pool:
    """Servers, and which of them a login goes to."""

    def __init__(
        self,
        name: str,
        config: PoolConfig,
        master_password: Secret | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        """`tls`: made beforehand, if only root may read the key of `certificate`."""
        self.name = name
        self.config = config
        self.master_password = master_password
        self.tokens = tokens
        if tls is not None:
            self.tls = tls
        self.transport: Transport | None = None
        """The way to its servers; None: directly."""
        self.transports: dict[Address, Transport | None] = {}
        """The way to some of them, where it is another."""
        self.changed: Changed = lambda _pool, _backend, _why: None
        self.introduces = config.xclient or config.proxy_header != "none"
        """Its servers are told who the client is."""
        self.declared = capabilities.parse(config.capabilities)
        balance = config.balance
        choose = "weights" if config.srv is not None and balance.choose == "order" else balance.choose
        rules = Rules(choose, config.shared, balance.failures, balance.retry, balance.slow_start)
        self._balancer = Balancer([], rules, random.random)
        self.places: Places | None = None
        """Where the servers' places are limited; see `share`."""
        self.found = asyncio.Event()  # it is known which servers there are, or why not
        self._why_none = "the SRV records are not known yet"
        backends = []
        for server in config.servers:
            address = Address(server.host, server.port or DEFAULT_PORTS[config.tls])
            weight = balance.weights.get(format_server(server), 1)
            backends.append(self._backend(address, weight, config.server_name or ""))
        self._has(backends)

    def share(self, state: SharedState) -> None:
        """Limits of sessions are kept, together with all who share `state`."""
        balance = self.config.balance
        if balance.sessions is not None:
            self.places = Places(self.name, balance.queue, balance.queue_wait, state)

    def _backend(self, address: Address, weight: float, name: str) -> Backend:
        member = Member(str(address), self._balancer.rules, weight, self.config.balance.sessions)
        return Backend(address, member, self.config.kerberos.principal, name)

    def _has(self, backends: list[Backend]) -> None:
        self.backends = backends
        self._by_member = {backend.member: backend for backend in backends}
        self._balancer.members = [backend.member for backend in backends]
        self._only = backends[0] if len(backends) == 1 else None
        if backends:
            self.found.set()

    # ---- servers that come and go (SRV) ----

    def offer(self, targets: Sequence[Target]) -> list[Backend]:
        """These are its servers now: those that it had already keep what is known of them. Returns the others.

        Raises BackendError if they cannot be used.
        """
        if len(targets) > 1 and not self.config.shared:
            self.none("several SRV records, but nothing says that the servers share their maildrops (shared: true)")
            raise BackendError(self._why_none, "connect", "other")
        had = {backend.address: backend for backend in self.backends}
        backends = []
        for target in targets:
            backend = had.get(target.address) or self._backend(target.address, target.weight, target.name)
            backend.member.priority, backend.member.weight = target.priority, target.weight
            backends.append(backend)
        self._has(backends)
        return [backend for backend in backends if backend.address not in had]

    def none(self, why: str) -> None:
        """It has no servers now; logins are told so at once."""
        self._has([])
        self._why_none = why
        self.found.set()

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """For TLS to its servers. Raises OSError or ssl.SSLError for files that cannot be used."""
        return pool_context(self.config)

    def way_to(self, backend: Backend) -> Transport | None:
        """The way to one server; None: directly."""
        return self.transports.get(backend.address, self.transport) if self.transports else self.transport

    def pipelines(self, backend: Backend, now: float) -> bool:
        """May several commands be sent at once?"""
        if self.config.pipelining != "auto":
            return self.config.pipelining == "yes"
        return "PIPELINING" in (backend.known(now) or {})

    # ---- choosing ----

    def candidates(self, user: str, server: Address | None, now: float) -> list[Backend]:
        """Servers to be tried in turn for `user`, his name there; `server`: where a directory says that his mail is.

        Raises BackendError if operators have closed them all, or the mail is at a server that is not among them.
        """
        only = self._only
        if only is not None and only.member.order is State.UP and server in (None, only.address):
            return self.backends
        choice = self._choose(user, server, now)
        return [self._by_member[member] for member in (*choice.well, *choice.last)]

    def _choose(self, user: str, server: Address | None, now: float) -> Choice:
        named = next((backend.member for backend in self.backends if backend.address == server), None)
        choice = self._balancer.choose(user, now, named)
        if not self.backends:
            raise BackendError(self._why_none, "connect", "dns")
        if server is not None and named is None and not self.config.shared:  # others have another maildrop, or none
            raise BackendError(f"{server} is not among the servers that the SRV records name", "connect", "dns")
        if not choice.well and not choice.last:
            raise BackendError("operators have closed the servers for this user", "connect", "closed")
        return choice

    async def enter(self, user: str, server: Address | None, now: float) -> tuple[list[Backend], Place]:
        """`candidates` where places are limited, and a place at the first of them. Raises BackendError."""
        assert self.places is not None
        choice = self._choose(user, server, now)
        known = self._by_member  # SRV records may name others by then
        place = await self.places.enter(user, choice.well or choice.last)
        others = (member for member in (*choice.well, *choice.last) if member is not place.member)
        return [known[member] for member in (place.member, *others)], place

    # ---- what becomes of logins and probes ----

    def worked(self, backend: Backend, now: float) -> None:
        """The server has let somebody in, or has refused him for good reasons."""
        if not backend.member.breaker.calm and backend.member.breaker.worked(now):
            self.changed(self, backend, "a login got through")

    def failed(self, backend: Backend, error: BackendError, now: float) -> None:
        """A login or a probe has failed there."""
        if error.code == "SYS/TEMP" and error.reason not in _OURS and backend.member.breaker.failed(now):
            self.changed(self, backend, f"{error.stage}: {error.reason}")

    def answered(self, backend: Backend, now: float) -> None:
        """A probe has succeeded."""
        if backend.member.breaker.answered(now):
            self.changed(self, backend, "a check succeeded")

    def order(self, backend: Backend, state: State) -> None:
        """An operator's: UP, DRAIN or MAINTENANCE."""
        if backend.member.order is not state:
            backend.member.order = state
            self.changed(self, backend, "ordered by an operator")
