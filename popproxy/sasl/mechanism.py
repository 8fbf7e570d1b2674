"""What every SASL mechanism looks like to the POP3 core: octets in, one of a few answers out (RFC 4422, RFC 5034)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from popproxy.errors import RemoteProtocolError
from popproxy.sasl.credentials import Credential


@dataclass(frozen=True, slots=True)
class Challenge:
    """Send `data` (the core adds ``+ ``, base64 and CRLF) and wait for the client's next response."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Verify:
    """The exchange is complete: `credential` is what must now be judged."""

    credential: Credential


@dataclass(frozen=True, slots=True)
class NeedStep:
    """Something that blocks must be done with `token` in a thread first; then the mechanism's `step_done` goes on.

    Only GSSAPI asks for it. If it fails, the login has failed.
    """

    token: bytes


Step = Challenge | NeedStep | Verify


class SaslError(RemoteProtocolError):
    """The client's response is not what the mechanism allows. Its text may be shown to the client."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="malformed")


class SaslMechanism(Protocol):
    """One exchange, from AUTH to the credential."""

    name: ClassVar[str]

    def step(self, response: bytes | None) -> Step:
        """Take the client's response: None at the start if it sent no initial response. Raises SaslError."""
        ...


def decode_name(raw: bytes) -> str:
    """A user name as text.

    Octets that are no UTF-8 become surrogates, which the vetting of names refuses with [AUTH].
    """
    return raw.decode("utf-8", "surrogateescape")
