"""From a configuration to the parts of a running proxy. Raises ConfigError for what only the environment can tell."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from popproxy.app.audit import open_audit, read_signing_key
from popproxy.app.backends import PoolSecrets, TokenParts, make_pools, read_pool_secrets
from popproxy.app.chain import password_judges
from popproxy.app.delegation import DelegationParts
from popproxy.app.directories import DirectoryParts, StartedDirectories, start_directories
from popproxy.app.kerberos import KerberosParts, ListenerKerberos, import_libraries, wants_tickets
from popproxy.app.mechanisms import MechanismParts, MechanismSecrets, Sources, read_mechanism_secrets
from popproxy.app.names import lookup, make_dns
from popproxy.app.operators import OperatorSecrets, read_operator_secrets
from popproxy.app.orders import OrderParts, open_orders
from popproxy.app.pools import PoolParts
from popproxy.app.shared import SharedSecrets, make_state, read_shared_secrets
from popproxy.app.socks import lead_through_socks
from popproxy.app.tunnels import TunnelKeys, read_tunnel_keys, start_tunnels
from popproxy.auth.accounts import Accounts
from popproxy.auth.chain import ByDomain, Chain
from popproxy.auth.names import canonical, vet_name
from popproxy.auth.policy import Policy
from popproxy.auth.result import Authenticator
from popproxy.auth.throttle import Throttle
from popproxy.auth.timed import Timed
from popproxy.auth.uniform import UniformDelay
from popproxy.auth.users_file import UsersFile
from popproxy.backend.dial import Dialer
from popproxy.backend.discovery import Discovery
from popproxy.backend.pool import Backend, Pool
from popproxy.config.loader import Loaded
from popproxy.config.model import Config
from popproxy.config.model_listeners import Listener
from popproxy.errors import ConfigError, Problem, VaultError
from popproxy.net.deadlines import Deadlines
from popproxy.net.names import Resolver
from popproxy.net.reactor import Reactor
from popproxy.net.relay import RelayContext
from popproxy.net.splice import Pipe
from popproxy.net.tls import ServerTls
from popproxy.observe.metrics import Metrics
from popproxy.pop3.capabilities import common, longer_delay
from popproxy.routing.router import Router
from popproxy.session.admission import Admission
from popproxy.session.context import ListenerContext, timestamp_host
from popproxy.session.hold import Holding
from popproxy.session.tracing import Tracing
from popproxy.state.executors import BoundedExecutor
from popproxy.state.mirrored import MirroredState
from popproxy.types import Secret, ThrottleScope

if TYPE_CHECKING:
    from popproxy.observe.audit_keys import SigningKey
    from popproxy.vault.record import Record
    from popproxy.vault.store import Vault

Read = TypeVar("Read")

HASH_DEADLINE = 30.0
"""Seconds for verifying a password hash, waiting for a thread included."""


@dataclass(frozen=True, slots=True)
class Privileged:
    """What is read before the privileges are dropped: keys that only root may read."""

    tls: dict[str, ServerTls]  # by listener
    vault_key: Secret | None
    backends: PoolSecrets
    mechanisms: MechanismSecrets
    directories: StartedDirectories
    tunnels: TunnelKeys
    audit_key: SigningKey | None
    shared: SharedSecrets | None
    operators: OperatorSecrets

    def close(self) -> None:
        """End the helper processes, if nobody has taken them over."""
        self.directories.close()


def read_privileged(loaded: Loaded) -> Privileged:
    """Certificates, keys, passwords of the proxy's own; starts helpers. Raises ConfigError."""
    config = loaded.config
    problems: list[Problem] = []
    tls: dict[str, ServerTls] = {}
    for listener in config.listeners:
        if listener.tls == "none":
            continue
        pairs = [(pair.cert, pair.key) for pair in listener.certificates or config.tls.certificates]
        try:
            tls[listener.name] = ServerTls(pairs, config.tls.minimum, listener.client_ca)
        except (OSError, ssl.SSLError, ValueError) as error:
            cure = "run `popproxy check`, it says which file and why"
            problems.append(Problem(str(loaded.path), f"listeners ({listener.name})", f"certificate: {error}", cure))
    key = None
    if config.vault is not None:
        from popproxy.vault.keys import vault_key  # noqa: PLC0415 - large, and few need it

        try:
            key = vault_key(config.vault)
        except ConfigError as error:
            problems += error.problems
    backends = _tried(problems, partial(read_pool_secrets, loaded), PoolSecrets())
    mechanisms = _tried(problems, partial(read_mechanism_secrets, config, key), MechanismSecrets())
    _tried(problems, partial(import_libraries, loaded), None)
    audit_key = _tried(problems, partial(read_signing_key, config.audit, str(loaded.path)), None)
    nothing: TunnelKeys = {}
    tunnels = _tried(problems, partial(read_tunnel_keys, loaded), nothing)
    directories = _tried(problems, partial(start_directories, loaded), StartedDirectories())
    shared = _tried(problems, partial(read_shared_secrets, loaded), None)
    operators = _tried(problems, partial(read_operator_secrets, config), OperatorSecrets())
    if problems:
        directories.close()
        raise ConfigError(problems)
    return Privileged(tls, key, backends, mechanisms, directories, tunnels, audit_key, shared, operators)


def _tried(problems: list[Problem], read: Callable[[], Read], otherwise: Read) -> Read:
    """What is read; `otherwise` if it cannot be, and the reasons go to `problems`."""
    try:
        return read()
    except ConfigError as error:
        problems += error.problems
        return otherwise


class Parts:
    """Everything the sessions share. Built after the privileges are dropped, so that files stay readable later."""

    def __init__(
        self, loaded: Loaded, privileged: Privileged, loop: asyncio.AbstractEventLoop,
        supervisor: socket.socket | None = None,
    ) -> None:  # fmt: skip
        """`supervisor` is where workers share state, if this is one of them."""
        config = self.config = loaded.config
        self._where = str(loaded.path)
        self._privileged = privileged
        self.pools = make_pools(config, privileged.backends)
        labels = list(dict.fromkeys(backend.label for pool in self.pools.values() for backend in pool.backends))
        names = [listener.name for listener in config.listeners]
        self.metrics = Metrics(names, labels, list(config.directories), list(config.tunnels))
        self.executor = self._hash_executor()
        self._vault = self._open_vault()
        self._users = self._open_users()
        self._accounts = None if self._users is None else Accounts(self._users, self.executor)
        self.router = Router(config, self._canonical)
        self._check_pool_tls()
        self.state = make_state(config, self.metrics, privileged.shared, supervisor)
        for pool in self.pools.values():
            pool.share(self.state)
        book = open_orders(config, self.state)
        self.holding = Holding(book, config.routing.hold_wait)
        self._tokens = TokenParts(
            self.pools, privileged.backends, self._vault, self.executor, self.metrics, self._where
        )  # fmt: skip
        self._kerberos = self._make_kerberos()
        self._delegation = self._make_delegation()
        self._mechanisms = MechanismParts(
            config, privileged.mechanisms,
            Sources(self._users, self._vault, self._accounts, self.executor, self.vet_name), self.metrics,
        )  # fmt: skip
        self._provers = {listener.name: self._mechanisms.provers(listener) for listener in config.listeners}
        self.audit = open_audit(loaded, privileged.audit_key, self.metrics)
        # from here on nothing can fail: what follows holds descriptors and timers
        self.reactor = Reactor(loop)
        self._directories = DirectoryParts(
            config, privileged.directories, self.metrics, loop, self.executor,
            self.holding.since,
        )  # fmt: skip
        self._places = self._directories.places(config.routing)
        self.deadlines = Deadlines(loop, self.metrics.event_loop_lag.observe)
        dns = make_dns(config)
        self.resolver = Resolver(loop, lookup(dns))
        self._discovery = None if dns is None else Discovery(dns.services, self._servers_changed)
        self._tunnels = start_tunnels(config, privileged.tunnels, self.pools, self.reactor, self.metrics)
        lead_through_socks(self.pools, privileged.backends.socks, self.reactor, self.resolver)
        self.dialer = Dialer(self.reactor, self.deadlines, self.resolver, config.timeouts, self.metrics)
        self.backends = PoolParts(self.pools, self.dialer, privileged.backends.checks, self.metrics, self.audit, loop)
        self.orders = OrderParts(book, self.pools, loop)
        self.admission = Admission(config.limits)
        self.tracing = Tracing()
        self.throttle = Throttle(config.penalties, self.state)
        for scope in ThrottleScope:
            self.metrics.watch_penalties(scope, partial(self.state.tracked, scope))
        self._delay = UniformDelay(config.authentication.failure_delay)
        self._pipe = Pipe() if any(pool.config.splice for pool in self.pools.values()) else None
        self._promised = common([pool.declared for pool in self.pools.values()])
        if config.limits.login_delay:
            delay = (str(math.ceil(config.limits.login_delay)),)
            self._promised["LOGIN-DELAY"] = longer_delay(self._promised.get("LOGIN-DELAY", ()), delay)

    def listener(self, listener: Listener) -> ListenerContext:
        """The context of one listener's sessions."""
        tls = self._privileged.tls.get(listener.name)
        kerberos = None if self._kerberos is None else self._kerberos.at(listener.name)
        if tls is not None:
            self.metrics.tls_certificate_expiry[listener.name] = tls.expires
        relay = RelayContext(listener.name, self.metrics, self.audit, self.deadlines, self.config.timeouts, self._pipe)
        return ListenerContext(
            listener=listener, config=self.config, reactor=self.reactor, relay=relay, admission=self.admission,
            authenticator=self._authenticator(listener, kerberos), throttle=self.throttle, state=self.state,
            delay=self._delay, router=self.router, pools=self.pools, dialer=self.dialer, holding=self.holding,
            stored=self._stored, tls=tls, promised=self._promised, host=timestamp_host(),
            tickets=None if kerberos is None else kerberos.tickets,
            kerberos_logins=None if self._delegation is None else self._delegation.at(listener),
            accounts=self._accounts,
            mechanisms=self._mechanisms.mechanisms(listener), verifiers=self._mechanisms.verifiers(listener),
            provers=self._provers[listener.name],
            places=self._places,
            visits=any(directory.asks_whence for directory in self.config.directories.values()),
            policy=Policy(self.config.policy, listener.name, self._canonical) if self.config.policy else None,
            tracing=self.tracing,
            talkative=self.config.logging.level == "debug",
        )  # fmt: skip

    async def share(self) -> None:
        """Reach those with whom state is shared, before the first client comes."""
        if isinstance(self.state, MirroredState):
            await self.state.start()

    def discover(self) -> None:
        """Begin to look for the servers that SRV records name."""
        if self._discovery is not None:
            self._discovery.start(self.pools.values())

    def _servers_changed(self, pool: Pool, new: Sequence[Backend]) -> None:
        self.backends.servers_changed(pool, new)
        self.orders.apply(pool, new)

    async def hang_up(self) -> None:
        """End what only the event loop can end; `close` comes after it."""
        await self.dialer.close()
        if self._discovery is not None:
            await self._discovery.close()
        self.resolver.close()
        if isinstance(self.state, MirroredState):
            await self.state.stop()
        await self._directories.hang_up()

    def close(self) -> None:
        """Give back timers, threads and descriptors; write what is left of the audit log."""
        self.orders.close()
        self.backends.close()
        self.deadlines.close()
        self._tokens.close()
        if self._tunnels is not None:
            self._tunnels.close()
        self.executor.close()
        self._directories.close()
        self._mechanisms.close()
        if self._kerberos is not None:
            self._kerberos.close()
        if self._delegation is not None:
            self._delegation.close()
        self.audit.close()
        self.reactor.close()
        if self._pipe is not None:
            self._pipe.close()

    # ---- pieces ----

    def _canonical(self, name: str) -> str:
        authentication = self.config.authentication
        return canonical(name, authentication.default_domain, authentication.case)

    def _hash_executor(self) -> BoundedExecutor:
        authentication = self.config.authentication
        executor = BoundedExecutor("hashes", authentication.hash_threads, authentication.hash_queue, HASH_DEADLINE)
        self.metrics.watch_executor("hashes", executor)
        return executor

    def vet_name(self, name: str) -> str:
        """The canonical form of a user's name. Raises NameRefused."""
        return vet_name(name, self.config.authentication.default_domain, self.config.authentication.case)

    def _make_kerberos(self) -> KerberosParts | None:
        kerberos = self.config.kerberos
        return None if kerberos is None else KerberosParts(self.config, kerberos, self.metrics)

    def _make_delegation(self) -> DelegationParts | None:
        kerberos = self.config.kerberos
        if kerberos is None or not wants_tickets(self.config):
            return None
        return DelegationParts(self.config, kerberos, self.metrics, self._canonical)

    def _open_vault(self) -> Vault | None:
        if self.config.vault is None or self._privileged.vault_key is None:
            return None
        from popproxy.vault.keys import newer_keys  # noqa: PLC0415 - large, and few need it
        from popproxy.vault.store import Vault  # noqa: PLC0415

        section = self.config.vault
        try:
            return Vault.open(section.file, self._privileged.vault_key, newer_keys=partial(newer_keys, section))
        except (VaultError, OSError) as error:
            raise ConfigError([Problem(self._where, "vault.file", str(error), "see `popproxy vault --help`")]) from None

    def _open_users(self) -> UsersFile | None:
        return None if self.config.users is None else UsersFile.load(self.config.users.file, self._canonical)

    def _stored(self, user: str) -> Record | None:
        return None if self._vault is None else self._vault.record(user)

    def _authenticator(self, listener: Listener, kerberos: ListenerKerberos | None) -> Authenticator:
        chain = self._chain(listener, kerberos, listener.authenticate)
        domains = self.config.authentication.domains
        if not domains:
            return chain
        return ByDomain({name: self._chain(listener, kerberos, checks) for name, checks in domains.items()}, chain)

    def _chain(self, listener: Listener, kerberos: ListenerKerberos | None, checks: Sequence[str]) -> Chain:
        authenticators = self._mechanisms.authenticators(listener)
        kdc = None if kerberos is None else kerberos.judge
        authenticators += password_judges(
            checks, self.config.authentication, users=self._users, kdc=kdc, executor=self.executor,
            directories=self._directories.directories, digests=self._directories.digests,
        )  # fmt: skip
        return Chain([Timed(authenticator, self.metrics) for authenticator in authenticators])

    def _check_pool_tls(self) -> None:
        problems = []
        for name, pool in self.pools.items():
            if pool.config.tls != "none":
                try:
                    pool.tls  # noqa: B018 - made here, so that a bad file is found at the start
                except (OSError, ssl.SSLError) as error:
                    cure = "name a file of CA certificates in PEM"
                    problems.append(Problem(self._where, f"pools.{name}.ca", f"{pool.config.ca}: {error}", cure))
        if problems:
            raise ConfigError(problems)


def describe_config(config: Config) -> str:
    """One line about what is being started, for the log."""
    listeners = ", ".join(f"{listener.name} on {' '.join(map(str, listener.listen))}" for listener in config.listeners)
    return f"{listeners}; pools {', '.join(config.pools)}"
