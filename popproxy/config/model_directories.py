"""The sections about directories: who knows the users, and where their mail is."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from popproxy.config.base import Model
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import Duration, LocalPath, ServerAddress


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


class Directory(Model):
    """A source of users and of routes."""

    ldap: Ldap | None = None
    """LDAP or Active Directory."""
    connections: int = Field(default=4, ge=1, le=64)
    """Questions at the same time."""
    queue: int = Field(default=200, ge=1)
    """Logins that may wait; more are answered [SYS/TEMP]."""
    deadline: Duration = 10.0
    """Longest wait for an answer, waiting for a free connection included; then the answer is [SYS/TEMP]."""

    @property
    def names_places(self) -> bool:
        """May it say in which pool a user's mail is?"""
        names = self.ldap.attributes if self.ldap is not None else LdapAttributes()
        return names.server is not None or names.pool is not None

    @field_validator("deadline")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be more than nothing; write for example 10s")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Directory:
        if self.ldap is None:
            raise ValueError("needs the section ldap; write for example ldap: {servers: [ldap.example.com], ...}")
        return self
