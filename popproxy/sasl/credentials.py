"""What a client has claimed once its authentication exchange is complete, before anybody has judged it."""

from __future__ import annotations

from dataclasses import dataclass

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


Credential = PasswordCredential | ApopCredential
