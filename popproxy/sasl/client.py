"""The client's side of SASL (RFC 4422), for logging in at a backend: what a mechanism has to say; PLAIN, EXTERNAL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from popproxy.sasl.mechanism import SaslError
from popproxy.types import Secret


@dataclass(frozen=True, slots=True)
class Respond:
    """Send `data` (the core adds base64 and CRLF). It may be a secret."""

    data: bytes


@dataclass(frozen=True, slots=True)
class NeedToken:
    """Ask the GSS context for its next token, in a thread, then call `token_made`.

    `token` is the server's, or None at the start. Only GSSAPI asks for it.
    """

    token: bytes | None


ClientStep = Respond | NeedToken


class SaslClient(Protocol):
    """One exchange, from AUTH to the last response."""

    name: ClassVar[str]

    @property
    def done(self) -> bool:
        """Everything was said that the mechanism has to say: only then does the server's +OK mean anything."""
        ...

    def start(self) -> ClientStep:
        """The initial response."""
        ...

    def challenge(self, data: bytes) -> ClientStep:
        """Take a challenge, decoded. Raises SaslError if the mechanism knows none here."""
        ...


class PlainClient:
    """PLAIN (RFC 4616): `authcid` proves itself by its password, and acts as `authzid`."""

    name: ClassVar[str] = "PLAIN"

    def __init__(self, authzid: bytes, authcid: bytes, password: Secret) -> None:
        self._message = Secret(authzid + b"\0" + authcid + b"\0" + password.reveal())
        self.done = False

    def start(self) -> Respond:
        """All of it."""
        self.done = True
        return Respond(self._message.reveal())

    def challenge(self, data: bytes) -> Respond:
        """There is none."""
        raise SaslError("PLAIN has no challenge")


class ExternalClient:
    """EXTERNAL (RFC 4422 appendix A): TLS has proved who we are, and we act as `authzid`."""

    name: ClassVar[str] = "EXTERNAL"

    def __init__(self, authzid: bytes) -> None:
        self._authzid = authzid
        self.done = False

    def start(self) -> Respond:
        """The name."""
        self.done = True
        return Respond(self._authzid)

    def challenge(self, data: bytes) -> Respond:
        """There is none."""
        raise SaslError("EXTERNAL has no challenge")
