"""What a client has claimed once its authentication exchange is complete, before anybody has judged it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag

from popproxy.types import Mechanism, Secret


@dataclass(frozen=True, slots=True)
class PasswordCredential:
    """A user name and a password, from USER/PASS, SASL PLAIN (RFC 4616) or SASL LOGIN.

    `authcid` is the name as claimed, decoded from UTF-8; `authzid` whom the client wants to act as ("" = itself).
    """

    mechanism: Mechanism
    authcid: str
    password: Secret
    authzid: str = ""


@dataclass(frozen=True, slots=True)
class ApopCredential:
    """APOP (RFC 1939 section 7).

    `digest` is 32 lower-case hex digits, MD5 of `timestamp` (with <>) and the shared secret.
    """

    authcid: str
    timestamp: bytes
    digest: Secret
    mechanism: Mechanism = Mechanism.APOP
    authzid: str = ""


class Layer(IntFlag):
    """Security layers of SASL GSSAPI, with their numbers on the wire (RFC 4752 section 3.3)."""

    NONE = 1
    INTEGRITY = 2
    CONFIDENTIALITY = 4


@dataclass(frozen=True, slots=True)
class GssapiCredential:
    """A complete SASL GSSAPI exchange (RFC 4752): Kerberos vouches for `principal`, nobody yet for the rest.

    `principal` is the client's name and `target` the service's, both as Kerberos writes them (``alice@EXAMPLE.ORG``,
    ``pop/mail.example.org@EXAMPLE.ORG``); `authzid` whom the client wants to act as ("" = itself). `layer` is the one
    security layer that takes effect with +OK, `client_max_size` the longest wrapped token in octets that the client
    takes (0 for layer none). `context` is the established GSS context, for the layer and for delegation.
    """

    principal: str
    target: str
    authzid: str = ""
    layer: Layer = Layer.NONE
    client_max_size: int = 0
    context: object = field(default=None, repr=False, compare=False)
    mechanism: Mechanism = Mechanism.GSSAPI

    @property
    def authcid(self) -> str:
        """Who the client is, for the audit record."""
        return self.principal


@dataclass(frozen=True, slots=True)
class KpopCredential:
    """A ticket shown in the KPOP handshake, and the mailbox that USER named afterwards (`authzid`).

    `principal` and `target` are as in GssapiCredential; `evidence` is what the acceptor keeps for delegation.
    """

    principal: str
    target: str
    authzid: str = ""
    evidence: object = field(default=None, repr=False, compare=False)
    mechanism: Mechanism = Mechanism.KPOP

    @property
    def authcid(self) -> str:
        """Who the client is, for the audit record."""
        return self.principal


Credential = PasswordCredential | ApopCredential | GssapiCredential | KpopCredential
