"""What may stand in ``popproxy.yaml``. Every default is here and nowhere else; descriptions go into the JSON Schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from popproxy.config.base import Model
from popproxy.config.model_abuse import Control, Penalties
from popproxy.config.model_audit import Audit
from popproxy.config.model_console import Console
from popproxy.config.model_directories import Directory
from popproxy.config.model_kerberos import Kerberos
from popproxy.config.model_listeners import Listener, Tls
from popproxy.config.model_mechanisms import External, Rpop, Scram
from popproxy.config.model_oauth import OAuth
from popproxy.config.model_policy import PolicyRule
from popproxy.config.model_pools import Pool
from popproxy.config.model_routing import Routing
from popproxy.config.model_shared import SharedState
from popproxy.config.model_tunnels import Tunnel
from popproxy.config.patterns import Name
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import DomainName, Duration, ListenAddress, LocalPath, NameServerAddress, WorkerCount
from popproxy.types import Address


class Users(Model):
    """Accounts that popproxy checks itself."""

    file: LocalPath = Field(examples=["/etc/popproxy/users"])
    """One user a line: name:hash. Make hashes with `popproxy hash-password`."""


class Vault(Model):
    """What proves users, encrypted at rest: secrets for APOP, CRAM-MD5 and backends, SCRAM verifiers."""

    file: LocalPath = Field(examples=["/etc/popproxy/vault"])
    """The encrypted vault; edit it with `popproxy vault`."""
    key: SecretSource = Field(examples=[{"file": "/etc/popproxy/vault.key"}])
    """The key that opens it: 32 octets in base64, made by `popproxy vault init`."""


class Authentication(Model):
    """What holds for every login."""

    failure_delay: Duration = 2.0
    """A failed login is answered this long after it was sent, whatever the reason."""
    tries: int = Field(default=3, ge=1, le=100)
    """Failed logins before the connection is closed."""
    domains: dict[str, Annotated[list[Name], Field(min_length=1)]] = {}
    """Who decides about passwords of users of these domains, instead of the listener's authenticate."""
    default_domain: str | None = None
    """Added to user names without a domain: alice becomes alice@example.com."""
    case: Literal["fold", "keep"] = "fold"
    """fold: user names are compared in lower case. keep: as the client sent them."""
    hash_threads: int = Field(default=2, ge=1, le=64)
    """Threads that verify password hashes; each may use as much memory as one hash asks for (argon2id: 64 MiB)."""
    hash_queue: int = Field(default=200, ge=1)
    """Logins that may wait for such a thread; more are answered [SYS/TEMP]."""

    def checks(self, others: Sequence[str], user: str) -> Sequence[str]:
        """Who decides about the passwords of a canonical name; `others` for users of no domain in `domains`."""
        _, at, domain = user.rpartition("@")
        found = {name.lower(): names for name, names in self.domains.items()}
        return found.get(domain.lower(), others) if at else others


class Limits(Model):
    """How much one client, and all of them, may use."""

    connections: int = Field(default=10000, ge=1)
    """Connections in all; each worker has an equal share. If there are more, those who have waited longest without
    logging in make room. After a reload those of the earlier configuration do not count."""
    connections_per_address: int = Field(default=100, ge=1)
    """Connections from one address (IPv6: from one /64), to all workers together. They tell each other once a second:
    in that time, and by a quarter for good, it may be more."""
    sessions_per_user: int = Field(default=20, ge=1)
    """Open maildrops of one user; more are answered [IN-USE]."""
    sessions_per_user_and_address: int = Field(default=10, ge=1)
    """Open maildrops of one user from one address (IPv6: from one /64)."""
    login_delay: Duration = 0.0
    """Time between two logins of one user; sooner ones are answered [LOGIN-DELAY] (RFC 2449 section 6.5). 0: none."""
    bad_commands: int = Field(default=10, ge=1)
    """Commands refused before the login until the connection is closed."""


class Timeouts(Model):
    """How long to wait for what."""

    handshake: Duration = 10.0
    """TLS handshake, PROXY header, or KPOP's handshake."""
    login: Duration = 60.0
    """Greeting to login, in total."""
    connect: Duration = 3.0
    """One attempt to reach a server."""
    connect_total: Duration = 10.0
    """All attempts."""
    backend_login: Duration = 60.0
    """Greeting to login at the backend."""
    idle: Duration = 600.0
    """Inactivity after the login; POP3 asks for ten minutes at least (RFC 1939 section 3)."""
    stall: Duration = 300.0
    """A backend that does not answer, or a client that does not read."""
    update: Duration = 300.0
    """The backend's answer to QUIT."""
    drain: Duration = 30.0
    """Running sessions may go on this long after SIGTERM."""
    reload: Duration = 3600.0
    """After a reload, sessions of the earlier configuration may go on this long."""

    @field_validator("*")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be more than nothing; write for example 30s")
        return value


class Logging(Model):
    """The operational log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """debug names every connection."""
    format: Literal["auto", "console", "json"] = "auto"
    """auto: console on a terminal, JSON otherwise."""


class Http(Model):
    """Metrics and health."""

    listen: ListenAddress | None = Address("127.0.0.1", 9110)
    """/metrics, /livez, /readyz and the status page; null switches them off."""
    token: SecretSource | None = Field(default=None, examples=[{"file": "/etc/popproxy/status.token"}])
    """What the status page must be told before it lists sessions; without it, it lists none."""
    hosts: list[DomainName] = []
    """Names by which browsers reach the status page, besides localhost, the machine's own name and IP addresses."""


class Names(Model):
    """Where addresses of servers are asked for."""

    servers: list[NameServerAddress] = []
    """Name servers, host:port by their IP addresses (port 53). Empty: those of /etc/resolv.conf."""


class Process(Model):
    """What the process becomes after it has bound its ports."""

    user: str | None = None
    """Run as this user. Without it, a process started as root stays root, and says so."""
    group: str | None = None
    """Run as this group; by default the user's."""
    state_directory: LocalPath | None = None
    """A directory of popproxy's own, for what operators have ordered: users held and moved, servers out of service. All
    processes of the host share it. null: kept in memory, and nobody can be moved."""


class Config(Model):
    """The whole file."""

    listeners: list[Listener] = Field(min_length=1, examples=[[{"name": "pop3", "listen": [":110"]}]])
    """Where clients connect."""
    pools: dict[Name, Pool] = Field(min_length=1, examples=[{"main": {"servers": ["mail.example.com"]}}])
    """The backends."""
    tunnels: dict[Name, Tunnel] = {}
    """SSH connections through which servers are reached, by a name of your choice."""
    routing: Routing = Routing()
    """Which pool serves which user. With one pool and no routing, it serves everybody."""
    names: Names = Names()
    """Where addresses of servers are asked for."""
    tls: Tls = Tls()
    """TLS towards clients."""
    users: Users | None = None
    """Accounts that popproxy checks itself."""
    vault: Vault | None = None
    """Secrets for APOP, CRAM-MD5 and backends, SCRAM verifiers."""
    scram: Scram | None = None
    """SCRAM without the vault."""
    directories: dict[Name, Directory] = {}
    """Sources of users and of routes, by a name of your choice."""
    external: External | None = None
    """Users of client certificates."""
    oauth: OAuth | None = None
    """Whose bearer tokens count."""
    rpop: Rpop | None = None
    """Where RPOP is taken from."""
    kerberos: Kerberos | None = None
    """Kerberos 5: tickets and passwords."""
    policy: list[PolicyRule] = []
    """Mechanisms that are given up."""
    authentication: Authentication = Authentication()
    """What holds for every login."""
    penalties: Penalties = Penalties()
    """Against guessing passwords."""
    limits: Limits = Limits()
    """How much one client, and all of them, may use."""
    shared_state: SharedState | None = None
    """What replicas on several machines share, in a Redis."""
    timeouts: Timeouts = Timeouts()
    """How long to wait for what."""
    audit: Audit = Audit()
    """The record of who fetched and deleted what."""
    logging: Logging = Logging()
    """The operational log."""
    http: Http = Http()
    """Metrics and health."""
    control: Control = Control()
    """The Unix socket for the commands of operators."""
    console: Console | None = None
    """An SSH server for operators."""
    process: Process = Process()
    """What the process becomes after it has bound its ports."""
    workers: WorkerCount = 1
    """Processes that serve side by side, each on a core of its own; auto: as many as there are cores."""

    def judges_digests(self, listener: Listener) -> bool:
        """Does a web service that decides there about passwords also decide about APOP and CRAM-MD5?"""
        names = {name for checks in (listener.authenticate, *self.authentication.domains.values()) for name in checks}
        return any(name in names and directory.http is not None for name, directory in self.directories.items())

    @property
    def effective_default_pool(self) -> str | None:
        """The pool of users that no rule matches: `routing.default`, or the only pool if there are no rules either."""
        if self.routing.default is None and not self.routing.rules and len(self.pools) == 1:
            return next(iter(self.pools))
        return self.routing.default
