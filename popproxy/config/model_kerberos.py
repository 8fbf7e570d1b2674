"""The section kerberos: whose tickets count, and which mailboxes they open."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from popproxy.config.base import Model
from popproxy.config.model_listeners import Listener
from popproxy.config.patterns import Regex
from popproxy.config.units import Duration, LocalPath

GssLayer = Literal["none", "integrity", "confidentiality"]


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
    keys_shared: bool = True
    """Do other replicas accept tickets for the same principals? With shared_state a ticket that one has taken is then
    refused by all; while Redis is away, tickets are taken only if they are bound to the TLS channel. false: each
    replica has principals of its own."""
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
