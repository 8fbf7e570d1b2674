"""What a client has claimed once its authentication exchange is complete, before anybody has judged it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag

from popproxy.types import Address, AuthFailure, Mechanism, Secret, Visit


@dataclass(frozen=True, slots=True)
class PasswordCredential:
    """A user name and a password, from USER/PASS, SASL PLAIN (RFC 4616) or SASL LOGIN.

    `authcid` is the name as claimed, decoded from UTF-8; `authzid` whom the client wants to act as ("" = itself).
    `visit` says where it comes from, if somebody wants to know.
    """

    mechanism: Mechanism
    authcid: str
    password: Secret
    authzid: str = ""
    visit: Visit | None = field(default=None, compare=False)


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
    visit: Visit | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class RpopCredential:
    """RPOP (RFC 1081): USER's name, and an argument whose meaning is the listener's; `source` is where it came from."""

    authcid: str
    argument: Secret
    source: Address
    mechanism: Mechanism = Mechanism.RPOP
    authzid: str = ""


@dataclass(frozen=True, slots=True)
class CramMd5Credential:
    """CRAM-MD5 (RFC 2195). `digest` is 32 lower-case hex digits, HMAC-MD5 of `challenge` keyed with the secret."""

    authcid: str
    challenge: bytes
    digest: Secret
    mechanism: Mechanism = Mechanism.CRAM_MD5
    authzid: str = ""
    visit: Visit | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ScramCredential:
    """A SCRAM exchange that has come to its end (RFC 5802).

    `fault` NONE: the client has proved that it knows the password behind the verifier of `authcid`. Anything else is
    why it has not; then nothing is proven. `authzid` is whom the client wants to act as ("" = itself).
    """

    mechanism: Mechanism
    authcid: str
    authzid: str = ""
    fault: AuthFailure = AuthFailure.NONE


@dataclass(frozen=True, slots=True)
class CertificateCredential:
    """EXTERNAL (RFC 4422 appendix A): TLS has verified the client's `certificate` (DER), nobody yet who that is here.

    `authzid` is whom the client wants to be ("" = whoever the certificate says).
    """

    certificate: bytes = field(repr=False)
    authzid: str = ""
    mechanism: Mechanism = Mechanism.EXTERNAL

    @property
    def authcid(self) -> str:
        """Who the client claims to be, for the audit record."""
        return self.authzid


@dataclass(frozen=True, slots=True)
class TokenCredential:
    """A bearer token by OAUTHBEARER (RFC 7628) or XOAUTH2, and the user that the client names with it ("" = nobody)."""

    mechanism: Mechanism
    token: Secret
    authzid: str = ""

    @property
    def authcid(self) -> str:
        """Who the client claims to be, for the audit record."""
        return self.authzid


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


Credential = (
    PasswordCredential
    | ApopCredential
    | RpopCredential
    | CramMd5Credential
    | ScramCredential
    | CertificateCredential
    | TokenCredential
    | GssapiCredential
    | KpopCredential
)


def repeatable(credential: Credential) -> Secret | None:
    """What is the same each time that a client tries it again, None if nothing is: answers to challenges are not."""
    match credential:
        case PasswordCredential():
            return credential.password
        case TokenCredential():
            return credential.token
        case RpopCredential():
            return credential.argument
        case _:
            return None
