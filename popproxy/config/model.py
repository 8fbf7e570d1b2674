"""What may stand in ``popproxy.yaml``. Every default is here and nowhere else; descriptions go into the JSON Schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from popproxy.config.base import Model
from popproxy.config.model_abuse import Control, Penalties
from popproxy.config.model_backends import XOAuth2
from popproxy.config.model_balance import Balance, Check
from popproxy.config.model_directories import Directory
from popproxy.config.model_mechanisms import External, Rpop, SaslName, Scram
from popproxy.config.model_oauth import OAuth
from popproxy.config.model_policy import PolicyRule
from popproxy.config.model_tunnels import Tunnel
from popproxy.config.patterns import Regex
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import Duration, IpAddress, IpNetwork, ListenAddress, LocalPath, ServerAddress
from popproxy.types import Address

NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
PIN_PATTERN = r"^[A-Za-z0-9+/]{43}=$"
BANNER_PATTERN = r"^[ -;=?-~]*$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
LoginStrategy = Literal[
    "forward",
    "apop",
    "stored",
    "master",
    "external",
    "xoauth2",
    "kerberos-forwarded",
    "kerberos-delegated",
    "kerberos-transition",
    "kerberos-service",
]
TICKET_STRATEGIES = frozenset(name for name in get_args(LoginStrategy) if name.startswith("kerberos-"))
GssLayer = Literal["none", "integrity", "confidentiality"]


class Certificate(Model):
    """A certificate chain in PEM and its private key."""

    cert: LocalPath = Field(examples=["/etc/popproxy/mail.example.com.pem"])
    """The certificate, followed by its intermediates."""
    key: LocalPath | None = None
    """The private key; left out when it stands in the same file."""


class ListenerKerberos(Model):
    """What one listener has of its own instead of what the section kerberos says. What is left out stays as there."""

    keytab: LocalPath | None = Field(default=None, examples=["/etc/popproxy/pop-inside.keytab"])
    """The keys of this listener's principals."""
    principals: list[str] = Field(default=[], examples=[["pop/inside.example.com@EXAMPLE.COM"]])
    """The names that tickets must be for here: pop/HOST@REALM."""
    realms: list[str] = Field(default=[], examples=[["EXAMPLE.COM"]])
    """Those of kerberos.realms whose users may come here. Names without a realm belong to the first one."""


class Listener(Model):
    """A place where clients connect."""

    name: Name = Field(examples=["pop3"])
    """Label in logs and metrics."""
    protocol: Literal["pop3", "kpop"] = "pop3"
    """pop3, or kpop: POP3 behind a Kerberos handshake (port 1109). It needs the section kerberos."""
    listen: list[ListenAddress] = Field(min_length=1, examples=[[":110"]])
    """Addresses and ports; ":110" means every IPv4 and IPv6 address of the machine."""
    tls: Literal["stls", "implicit", "none"] = "stls"
    """stls: plain text that can be raised to TLS (port 110). implicit: TLS from the first octet (port 995).
    none: never TLS."""
    certificates: list[Certificate] = []
    """Certificates of this listener; if empty, those of the top-level section tls."""
    client_ca: LocalPath | None = Field(default=None, examples=["/etc/popproxy/clients-ca.pem"])
    """Certificates of the authorities whose certificates clients may show. Nobody must show one; it counts for EXTERNAL
    alone."""
    client_crl: LocalPath | None = None
    """Revocation lists of these authorities, in PEM. A new version is read as soon as it is there."""
    cleartext_networks: list[IpNetwork] = []
    """Networks from which passwords are accepted without TLS. Empty: from nowhere."""
    apop: bool = False
    """Offer APOP (needs the vault)."""
    sasl: list[SaslName] = []
    """SASL mechanisms to offer beside PLAIN and LOGIN, which come with passwords: CRAM-MD5, SCRAM-SHA-1, SCRAM-SHA-256,
    with -PLUS behind these bound to TLS by tls-server-end-point; EXTERNAL (client certificates); OAUTHBEARER and
    XOAUTH2 (bearer tokens)."""
    rpop: Literal["off", "rfc", "id"] = "off"
    """Take RPOP (needs the section rpop). rfc: trust machines to name their users, as RFC 1081 has it. id: a secret id
    for each user, from the vault, as fetchmail has it."""
    gssapi: bool = False
    """Offer SASL GSSAPI: single sign-on with Kerberos tickets (needs the section kerberos)."""
    kerberos: ListenerKerberos | None = None
    """Keytab, principals and realms of this listener, where they differ from those of the section kerberos."""
    authenticate: list[Name] = Field(default=["passthrough"], min_length=1)
    """Who decides about a password: users (the users file), kerberos (the KDC), passthrough (the backend), a directory
    by its name, or one after the other."""
    proxy_protocol: list[IpNetwork] = []
    """Networks of load balancers that send a PROXY v1 or v2 header. From them it is then compulsory, from others
    refused."""
    banner: str = Field(default="POP3 ready", max_length=200, pattern=BANNER_PATTERN)
    """Text of the greeting, printable ASCII without < and >."""

    @property
    def takes_proofs(self) -> bool:
        """Can one log in without a password in clear?"""
        return bool(self.apop or self.sasl or self.rpop != "off" or self.gssapi or self.protocol == "kpop")

    @property
    def uses_kerberos(self) -> bool:
        """Does it take tickets, or passwords for the KDC?"""
        return self.gssapi or self.protocol == "kpop" or "kerberos" in self.authenticate


class Tls(Model):
    """TLS towards clients."""

    certificates: list[Certificate] = []
    """Certificates for all listeners; chosen by the name that the client asks for (SNI), the first one otherwise."""
    minimum: Literal["1.2", "1.3"] = "1.2"
    """Oldest TLS version accepted."""


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


class KerberosRealm(Model):
    """A realm whose users may come."""

    realm: str = Field(min_length=1, examples=["EXAMPLE.COM"])
    """Its name, as Kerberos writes it."""
    domain: str | None = None
    """Put behind the user's name: alice@EXAMPLE.COM has the mailbox alice@example.com. null: the mailbox is alice."""
    instances: list[str] = []
    """Second parts of principals that stand for the user: with mail, alice/mail@EXAMPLE.COM is alice. Others are
    refused."""
    by_name: bool = True
    """Map users by their name. false: only rules do."""


class KerberosRule(Model):
    """Gives some principals another mailbox: exactly one of regex and file. Files decide before regular expressions."""

    regex: Regex | None = None
    """Every principal (user@REALM) that matches this regular expression as a whole."""
    mailbox: str | None = Field(default=None, min_length=1)
    """With regex: the user's name here, with \\1 or \\g<name> for groups."""
    file: LocalPath | None = None
    """A file with a line per principal: principal@REALM mailbox."""

    @model_validator(mode="after")
    def _one_condition(self) -> KerberosRule:
        if (self.regex is None) == (self.file is None):
            raise ValueError("needs exactly one of regex, file; write for example file: principals.map")
        if (self.regex is None) != (self.mailbox is None):
            raise ValueError("regex and mailbox belong together; write for example mailbox: \\1@example.com")
        return self


class Kerberos(Model):
    """Kerberos 5: tickets (gssapi, protocol: kpop) and passwords (authenticate: [kerberos])."""

    keytab: LocalPath = Field(examples=["/etc/popproxy/pop.keytab"])
    """The keys of the principals. Read anew for each ticket: new keys need no restart."""
    principals: list[str] = Field(min_length=1, examples=[["pop/mail.example.com@EXAMPLE.COM"]])
    """The names that tickets must be for: pop/HOST@REALM. The first one also proves the KDC when it checks a
    password."""
    replay_cache: LocalPath = Field(examples=["/var/lib/popproxy/replay"])
    """A directory of popproxy's own, for the cache that refuses a ticket's second use. All processes of the host share
    it."""
    realms: list[KerberosRealm] = Field(min_length=1, examples=[[{"realm": "EXAMPLE.COM"}]])
    """Realms whose users may come. Names without a realm belong to the first one."""
    rules: list[KerberosRule] = []
    """Mailboxes of principals that are not called like them."""
    layers: list[GssLayer] = Field(default=["integrity", "confidentiality"], min_length=1)
    """What GSSAPI clients may choose to protect the session with, when there is no TLS. Under TLS it is always none."""
    client_principal: str | None = Field(default=None, min_length=1)
    """Who popproxy itself is when it asks for tickets for servers; its key must be in the keytab. null: the principal
    that the client's ticket was for, or the first one. For Active Directory the account: POPPROXY$@EXAMPLE.COM."""
    delegation_cache: Duration = 300.0
    """How long tickets in a user's name are kept for the user's next login. 0s keeps none."""
    delegation_cache_size: int = Field(default=1000, ge=0)
    """For so many users."""
    channel_binding: Literal["off", "allow", "require"] = "allow"
    """Bind GSSAPI to TLS (tls-server-end-point): allow refuses a client that names another channel, require also one
    that names none."""
    threads: int = Field(default=4, ge=1, le=64)
    """Threads that accept tickets, as many that ask the KDC about passwords, and as many that fetch tickets for
    servers."""
    queue: int = Field(default=200, ge=1)
    """Logins that may wait for such a thread; more are answered [SYS/TEMP]."""
    deadline: Duration = 10.0
    """Longest wait for a thread and the KDC together; then the answer is [SYS/TEMP]."""
    cache: Duration = 0.0
    """How long a password that was right is not asked about again. A changed password or a closed account takes effect
    after it."""

    @field_validator("deadline")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be more than nothing; write for example 10s")
        return value

    def at(self, listener: Listener) -> Kerberos:
        """What holds at a listener: this section, with what the listener has of its own in its place."""
        own = listener.kerberos
        if own is None:
            return self
        realms = {realm.realm: realm for realm in self.realms}
        return self.model_copy(
            update={
                "keytab": own.keytab or self.keytab,
                "principals": own.principals or self.principals,
                "realms": [realms[name] for name in own.realms if name in realms] or self.realms,
            }
        )


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


class Rule(Model):
    """Sends some users to a pool: exactly one of user, domain, regex, file. The first rule that matches decides."""

    user: str | None = None
    """This user alone."""
    domain: str | None = None
    """Every user of this domain."""
    regex: Regex | None = None
    """Every user whose whole name matches this regular expression."""
    file: LocalPath | None = None
    """A file with a line per user: user, pool, and the backend's name for the user if it differs; between spaces."""
    pool: Name | None = None
    """The pool; with file: the pool for lines that name none."""
    backend_user: str | None = Field(default=None, min_length=1)
    """The user's name at the backend: text with {user}, {local} and {domain}; with regex also \\1 or \\g<name>."""

    @model_validator(mode="after")
    def _one_condition(self) -> Rule:
        given = [name for name in ("user", "domain", "regex", "file") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"needs exactly one of user, domain, regex, file, but has {' and '.join(given) or 'none'}; "
                + ("make one rule of each" if given else "write for example domain: example.com")
            )
        if self.pool is None and self.file is None:
            raise ValueError("needs a pool; write for example pool: main")
        return self


class Routing(Model):
    """Which pool serves which user."""

    rules: list[Rule] = []
    """Tried in order; the first match decides."""
    default: Name | None = None
    """Pool for everybody else. Without it, users that no rule matches are refused."""
    default_backend_user: str | None = Field(default=None, min_length=1)
    """The user's name at the default pool: text with {user}, {local} and {domain}."""
    directories: list[Name] = []
    """Directories to ask where a user's mail is, in this order, before the rules are tried. Not needed for users whom
    a directory lets in that says so then."""
    cache: Duration = 60.0
    """How long their answers count."""
    stale: Duration = 86400.0
    """How much longer they count while a directory does not answer."""


class Master(Model):
    """An account of the backend that may open everybody's maildrop."""

    user: str = Field(min_length=1, examples=["popproxy"])
    """Its name."""
    password: SecretSource = Field(examples=[{"file": "/etc/popproxy/master.password"}])
    """Where its password is."""
    mechanism: Literal["user", "plain"] = "user"
    """user: USER alice*popproxy and PASS. plain: AUTH PLAIN as popproxy, acting as alice (Dovecot; Cyrus with
    proxyservers)."""
    separator: str = Field(default="*", min_length=1, max_length=8)
    """With mechanism: user, between the user's name and its own (Dovecot: auth_master_user_separator)."""


class PoolKerberos(Model):
    """Tickets for the servers of a pool: what the strategies kerberos-... need to know."""

    principal: str = "pop/{host}"
    """The name of the servers at the KDC; {host} is the server's name in servers. Without @REALM it is in popproxy's
    own realm."""
    layers: list[GssLayer] = Field(default=["confidentiality", "integrity"], min_length=1)
    """What may protect the session on a link without TLS, best first. none: mail and commands in clear."""
    channel_binding: bool = True
    """Tell the server to which TLS channel the ticket belongs (tls-server-end-point). Switch off where TLS ends at
    another machine, in front of the server."""


class Pool(Model):
    """One backend, or several that serve the same maildrops."""

    servers: list[ServerAddress] = Field(min_length=1, examples=[["mail.example.com"]])
    """host or host:port (port 110, or 995 with tls: implicit)."""
    shared: bool = False
    """Say true if all servers serve the same maildrops. Only then is another one tried if one is down. Without it there
    may be more than one only with choose: hash."""
    balance: Balance = Balance()
    """How a login finds its server, and how many a server can take."""
    check: Check | None = None
    """Ask the servers regularly whether they work. null: only those at which logins have failed are asked."""
    tunnel: Name | None = None
    """The SSH tunnel through which the servers are reached."""
    source_address: IpAddress | None = Field(default=None, examples=["192.0.2.5"])
    """The address of this machine from which to connect to the servers."""
    tls: Literal["stls", "implicit", "none"] = "stls"
    """How the link is protected. stls never falls back to plain text."""
    ca: LocalPath | None = None
    """CA certificates to trust for this pool, instead of the system's."""
    server_name: str | None = None
    """The name the server's certificate must carry, if it is not the host's."""
    verify: bool = True
    """Verify the server's certificate and name. Switch off only in a laboratory, or where there is a pin."""
    pin: list[Annotated[str, Field(pattern=PIN_PATTERN)]] = Field(
        default=[], examples=[["X3pGTSOuJeEVw989IJ/cEtXUEmy52zs1TZQrU06KUKg="]]
    )
    """The keys that the servers may have: SHA-256 of the public key (SubjectPublicKeyInfo), in base64. A server with
    another key gets nothing, whoever has certified it."""
    legacy_tls: bool = False
    """Quarantine for servers that have nothing better: TLS 1.0 and 1.1, old ciphers and short keys are taken from the
    servers of this pool, and from no others."""
    certificate: Certificate | None = None
    """The certificate that popproxy shows to the servers, for login: [external] or where they insist on one."""
    xclient: bool = False
    """Tell the servers by XCLIENT, before the login, who the client is: its address and port, and the session's id in
    the audit log. For Dovecot, with popproxy in its login_trusted_networks. A server that refuses it is not used."""
    allow_cleartext: bool = False
    """Say true to send passwords over a link without TLS. Needed with tls: none, but not behind a tunnel."""
    login: list[LoginStrategy] = Field(default=["forward"], min_length=1)
    """How to log in: the first way that can be used for this user at this server. forward (the client's password), apop
    or stored (the user's password there, from the vault), master (an account that may open everybody's maildrop),
    external (popproxy's certificate), xoauth2 (an access token). With Kerberos: kerberos-forwarded (the ticket
    that the client has forwarded), kerberos-delegated (constrained delegation for clients that have shown a ticket),
    kerberos-transition (the same for users that have logged in otherwise), kerberos-service (popproxy's own ticket)."""
    master: Master | None = None
    """The account for login: [master]."""
    xoauth2: XOAuth2 | None = None
    """Where access tokens come from, for login: [xoauth2]."""
    kerberos: PoolKerberos = PoolKerberos()
    """For login: [kerberos-...]."""
    capabilities: list[str] = ["TOP", "UIDL"]
    """What every server of the pool can do, as it would stand in CAPA: TOP, UIDL, "EXPIRE 30", "LOGIN-DELAY 60".
    Verified by `popproxy check`."""
    pipelining: Literal["auto", "yes", "no"] = "auto"
    """Send several commands at once? auto: if the server's CAPA says so."""
    splice: bool = False
    """Move the middle of long messages inside the kernel, unread, where neither side has TLS. Half the CPU for them;
    the end is still found where the server puts it, and a wrong size in its +OK does no harm. But octets that a broken
    server sends behind its own final dot would go unnoticed. Needs tls: none."""


class Limits(Model):
    """How much one client, and all of them, may use."""

    connections: int = Field(default=10000, ge=1)
    """Connections in all."""
    connections_per_address: int = Field(default=100, ge=1)
    """Connections from one address (IPv6: from one /64)."""
    sessions_per_user: int = Field(default=20, ge=1)
    """Open maildrops of one user; more are answered [IN-USE]."""
    sessions_per_user_and_address: int = Field(default=10, ge=1)
    """Open maildrops of one user from one address (IPv6: from one /64)."""
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

    @field_validator("*")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be more than nothing; write for example 30s")
        return value


class Audit(Model):
    """The record of who fetched and deleted what."""

    file: LocalPath | None = None
    """JSON lines are appended here; without it they go to standard output."""
    on_error: Literal["closed", "open"] = "closed"
    """If the record cannot be written: closed refuses new logins, open lets them go on and counts."""
    log_unknown_users: bool = False
    """Write the names of users that could not log in. People type passwords there; off writes a keyed hash."""
    flush: Duration = 0.05
    """Records of fetches and deletions are written together, at the latest after this time."""


class Logging(Model):
    """The operational log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """debug names every connection."""
    format: Literal["auto", "console", "json"] = "auto"
    """auto: console on a terminal, JSON otherwise."""


class Http(Model):
    """Metrics and health."""

    listen: ListenAddress | None = Address("127.0.0.1", 9110)
    """/metrics, /livez and /readyz; null switches them off."""


class Process(Model):
    """What the process becomes after it has bound its ports."""

    user: str | None = None
    """Run as this user. Without it, a process started as root stays root, and says so."""
    group: str | None = None
    """Run as this group; by default the user's."""


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
    process: Process = Process()
    """What the process becomes after it has bound its ports."""

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
