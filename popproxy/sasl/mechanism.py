"""What every SASL mechanism looks like to the POP3 core: octets in, one of a few answers out (RFC 4422, RFC 5034)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from popproxy.errors import RemoteProtocolError
from popproxy.sasl.credentials import Credential
from popproxy.types import Mechanism


@dataclass(frozen=True, slots=True)
class Challenge:
    """Send `data` (the core adds ``+ ``, base64 and CRLF) and wait for the client's next response."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Verify:
    """The exchange is complete: `credential` is what must now be judged.

    If it is refused, `refusal` is sent as one more challenge before -ERR: the mechanism's own words for that.
    """

    credential: Credential
    refusal: bytes | None = None


@dataclass(frozen=True, slots=True)
class NeedStep:
    """Something that blocks must be done with `token` in a thread first; then the mechanism's `step_done` goes on.

    Only GSSAPI asks for it. If it fails, the login has failed.
    """

    token: bytes


@dataclass(frozen=True, slots=True)
class NeedVerifier:
    """What is stored for the user `authcid` must be looked up first; then the mechanism's `verifier_found` goes on.

    Only SCRAM asks for it. A user who has none gets a made-up one.
    """

    mechanism: Mechanism
    authcid: str


Step = Challenge | NeedStep | NeedVerifier | Verify


class SaslError(RemoteProtocolError):
    """The client's response is not what the mechanism allows. Its text may be shown to the client.

    `refusal` is sent as one more challenge before -ERR, if the mechanism has words of its own for what is wrong.
    """

    def __init__(self, message: str, refusal: bytes | None = None) -> None:
        super().__init__(message, reason="malformed")
        self.refusal = refusal


class SaslMechanism(Protocol):
    """One exchange, from AUTH to the credential."""

    def step(self, response: bytes | None) -> Step:
        """Take the client's response: None at the start if it sent no initial response. Raises SaslError."""
        ...


def decode_name(raw: bytes) -> str:
    """A user name as text.

    Octets that are no UTF-8 become surrogates, which the vetting of names refuses with [AUTH].
    """
    return raw.decode("utf-8", "surrogateescape")
