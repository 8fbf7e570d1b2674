"""The sections about directories: who knows the users, and where their mail is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator

from popproxy.config.base import Model
from popproxy.config.patterns import Regex
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import Duration, LocalPath, ServerAddress

_KINDS = ("ldap", "sql", "http", "pam")
PAM_SERVICE_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,62}$"

HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class LdapAccount(Model):
    """The account by which popproxy searches."""

    dn: str = Field(min_length=1, examples=["cn=popproxy,ou=services,dc=example,dc=com"])
    """Its distinguished name; with Active Directory also popproxy@example.com."""
    password: SecretSource = Field(examples=[{"file": "/etc/popproxy/ldap.password"}])
    """Where its password is."""


class LdapAttributes(Model):
    """Attributes of a user's entry that popproxy reads. Each may have one value at most."""

    mailbox: str | None = Field(default=None, min_length=1)
    """The user's own name, if it is not the one that was typed: mail, userPrincipalName."""
    server: str | None = Field(default=None, min_length=1)
    """The server that has the maildrop, as it stands in a pool: mailHost."""
    pool: str | None = Field(default=None, min_length=1)
    """The pool that has the maildrop."""
    backend_user: str | None = Field(default=None, min_length=1)
    """The user's name there: uid."""

    @property
    def wanted(self) -> list[str]:
        """All that are named, once each."""
        return list(dict.fromkeys(filter(None, (self.mailbox, self.server, self.pool, self.backend_user))))


class Ldap(Model):
    """LDAP or Active Directory. Needs pip install 'popproxy[ldap]'."""

    servers: list[ServerAddress] = Field(min_length=1, examples=[["ldap.example.com"]])
    """host or host:port (port 389, or 636 with tls: implicit), tried in order."""
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    """How the link is protected: StartTLS, TLS from the first octet (ldaps), or not."""
    ca: LocalPath | None = None
    """CA certificates to trust, instead of the system's. The certificate must carry the name in servers."""
    allow_cleartext: bool = False
    """Say true to send passwords over a link without TLS. Needed with tls: none."""
    user_dn: str | None = Field(default=None, min_length=1)
    """Log in as this: a distinguished name with {user}, {local} or {domain}; with Active Directory also {user} or
    {local}@corp.example.com. Without it, popproxy searches the user first."""
    account: LdapAccount | None = None
    """The account by which popproxy searches. Without it, it searches anonymously."""
    base: str | None = Field(default=None, min_length=1)
    """Where to search: a distinguished name, with {domain} if there is a branch for each."""
    filter: str | None = Field(default=None, min_length=1)
    """The user among the entries there: (&(objectClass=person)(mail={user}))."""
    scope: Literal["subtree", "one"] = "subtree"
    """Search everything below base, or one level only."""
    attributes: LdapAttributes = LdapAttributes()
    """What to read from the user's entry."""


class SqlTarget(NamedTuple):
    """The parts of a URL. For SQLite, `database` is the path of the file; for PostgreSQL "" as host is its socket."""

    kind: Literal["postgresql", "sqlite"]
    database: str
    host: str = ""
    port: int = 5432
    user: str | None = None


class Sql(Model):
    """A database. Needs pip install 'popproxy[sql]'."""

    url: str = Field(examples=["postgresql://popproxy@db.example.com/mail"])
    """postgresql://USER@HOST:PORT/DATABASE, without a host by its Unix socket; or sqlite:FILE."""
    password: SecretSource | None = Field(default=None, examples=[{"file": "/etc/popproxy/sql.password"}])
    """Where the password for PostgreSQL is."""
    tls: Literal["require", "none"] = "require"
    """Protect the link to PostgreSQL by TLS. It never falls back to plain text."""
    ca: LocalPath | None = None
    """CA certificates to trust, instead of the system's. The certificate must carry the host's name."""
    allow_cleartext: bool = False
    """Say true to ask over a link without TLS. Needed with tls: none, if there is a host."""
    query: str = Field(min_length=1, examples=["SELECT password, pool FROM users WHERE login = :user"])
    """One SELECT with :user, :local or :domain. Its columns are called password (a hash), and as far as they are known
    mailbox, pool, server, port, backend_user, disabled."""

    @field_validator("url")
    @classmethod
    def _usable(cls, value: str, info: ValidationInfo) -> str:
        target = _target(value)
        directory: Path | None = (info.context or {}).get("directory")
        if target.kind == "sqlite" and directory is not None:
            return f"sqlite:{directory / target.database}"
        return value

    @property
    def target(self) -> SqlTarget:
        """What the URL says."""
        return _target(self.url)


def _target(url: str) -> SqlTarget:
    """Raises ValueError, whose text does not repeat the URL: there may be a password in it."""
    example = "write for example postgresql://popproxy@db.example.com/mail or sqlite:/var/lib/mail/users.db"
    scheme, colon, rest = url.partition(":")
    if scheme == "sqlite" and colon:
        path = rest.removeprefix("//") if rest.startswith("///") else rest
        if not path or path.startswith("//") or "?" in path:
            raise ValueError("names no file; write for example sqlite:/var/lib/mail/users.db")
        return SqlTarget("sqlite", path)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 5432
    except ValueError:
        raise ValueError(f"is not the URL of a database; {example}") from None
    if parts.scheme not in ("postgresql", "postgres") or parts.query or parts.fragment:
        raise ValueError(f"is not the URL of a database; {example}")
    if parts.password is not None:
        cure = "write password: {file: /etc/popproxy/sql.password}, and the URL without it"
        raise ValueError(f"a secret may not stand in this file; {cure}")
    database = unquote(parts.path.removeprefix("/"))
    if not database or not parts.username:
        raise ValueError(f"names no {'user' if database else 'database'}; {example}")
    return SqlTarget("postgresql", database, host, port, unquote(parts.username))


class HttpTarget(NamedTuple):
    """The parts of a URL. `url` is what is asked for; by the Unix socket `socket`, if there is one."""

    url: str
    secure: bool
    host: str = ""
    socket: Path | None = None


class AuthHttp(Model):
    """A web service that is asked as nginx asks its auth_http."""

    url: str = Field(examples=["http://127.0.0.1:9000/auth"])
    """http:// or https://, as auth_http has it; by a Unix socket http://unix:/run/auth.sock:/auth."""
    ca: LocalPath | None = None
    """CA certificates to trust, instead of the system's. The certificate must carry the host's name."""
    allow_cleartext: bool = False
    """Say true to send passwords over a link without TLS. Needed with http:// to another machine."""
    headers: dict[HeaderName, SecretSource] = Field(
        default={}, examples=[{"X-Auth-Key": {"file": "/etc/popproxy/auth.key"}}]
    )
    """More headers to send, as auth_http_header has it; where their values are."""
    temporary: Regex = r"(?i)\b(temporar|internal|unavailable|out of order)"
    """Texts in Auth-Status that do not mean a wrong password but trouble of the service: a regular expression."""

    @field_validator("url")
    @classmethod
    def _usable(cls, value: str) -> str:
        _http_target(value)
        return value

    @field_validator("headers")
    @classmethod
    def _names(cls, value: dict[str, SecretSource]) -> dict[str, SecretSource]:
        for name in value:
            if re.match(r"(auth|client)-|(host|connection|content-length|transfer-encoding)$", name, re.IGNORECASE):
                raise ValueError(f"{name} is a header that popproxy sends itself; write for example X-Auth-Key")
        return value

    @property
    def target(self) -> HttpTarget:
        """What the URL says."""
        return _http_target(self.url)


def _http_target(url: str) -> HttpTarget:
    """Raises ValueError, whose text does not repeat the URL: there may be a password in it."""
    example = "write for example http://127.0.0.1:9000/auth or http://unix:/run/auth.sock:/auth"
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"is not a URL; {example}")
    if url.startswith("http://unix:"):
        path, _, rest = url.removeprefix("http://unix:").partition(":")
        if not path.startswith("/") or not (rest or "/").startswith("/"):
            raise ValueError(f"names no socket; {example}")
        return HttpTarget(f"http://localhost{rest or '/'}", False, socket=Path(path))
    try:
        parts = urlsplit(url)
        right = bool(parts.hostname) and parts.port != 0 and not parts.fragment
    except ValueError:
        right = False
    if not right or parts.scheme not in ("http", "https"):
        raise ValueError(f"is not a URL; {example}")
    if parts.username is not None:
        raise ValueError("holds a user or a password; write the URL without them, and a secret in headers:")
    return HttpTarget(url, parts.scheme == "https", parts.hostname or "")


class Pam(Model):
    """The machine's own users, and whatever else its PAM knows."""

    service: str = Field(default="popproxy", pattern=PAM_SERVICE_PATTERN)
    """The service, which is described in /etc/pam.d."""
    user: str = Field(default="{user}", min_length=1)
    """What PAM calls the user: text with {user}, {local} or {domain}."""


class Directory(Model):
    """A source of users and of routes: exactly one of ldap, sql, http and pam."""

    ldap: Ldap | None = None
    """LDAP or Active Directory."""
    sql: Sql | None = None
    """PostgreSQL or SQLite."""
    http: AuthHttp | None = None
    """A web service, as nginx asks it."""
    pam: Pam | None = None
    """PAM."""
    connections: int = Field(default=4, ge=1, le=64)
    """Questions at the same time."""
    queue: int = Field(default=200, ge=1)
    """Logins that may wait; more are answered [SYS/TEMP]."""
    deadline: Duration = 10.0
    """Longest wait for an answer, waiting for a free connection included; then the answer is [SYS/TEMP]."""
    cache: Duration = 0.0
    """How long a password that was right is not asked about again. A changed password or a closed account takes effect
    after it."""

    @property
    def kind(self) -> str:
        """Which of them it is."""
        return next(name for name in _KINDS if getattr(self, name) is not None)

    @property
    def asks_whence(self) -> bool:
        """Does it judge by where a login comes from, too?"""
        return self.http is not None or self.pam is not None

    @property
    def names_places(self) -> bool:
        """May it say in which pool a user's mail is?"""
        if self.ldap is not None:
            return self.ldap.attributes.server is not None or self.ldap.attributes.pool is not None
        return self.pam is None

    @field_validator("deadline")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be more than nothing; write for example 10s")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Directory:
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            has = " and ".join(given) or "none"
            cure = "make a directory of each" if given else "write for example ldap: {servers: [ldap.example.com], ...}"
            raise ValueError(f"needs exactly one of {', '.join(_KINDS)}, but has {has}; {cure}")
        return self
