"""Bearer tokens as a client sends them: OAUTHBEARER (RFC 7628), and XOAUTH2 as Google and Microsoft describe it."""

from __future__ import annotations

from typing import ClassVar, Literal

from popproxy.sasl.client import Respond
from popproxy.sasl.gs2 import encode_saslname
from popproxy.sasl.mechanism import SaslError
from popproxy.types import Secret


class _BearerClient:
    """One message; a challenge says that it is refused, and why, and wants an answer before the server says -ERR."""

    name: ClassVar[str]
    _resigned: ClassVar[bytes]

    def __init__(self, message: bytes) -> None:
        self._message = Secret(message)
        self._refused = False
        self._sent = False

    @property
    def done(self) -> bool:
        """Behind a refusal no +OK means anything."""
        return self._sent and not self._refused

    def start(self) -> Respond:
        """All of it."""
        self._sent = True
        return Respond(self._message.reveal())

    def challenge(self, data: bytes) -> Respond:
        """The server's reasons, in JSON: for the client's eyes, and the verdict comes behind."""
        if self._refused:
            raise SaslError("a second challenge behind the refusal of a token")
        self._refused = True
        return Respond(self._resigned)


class XOAuth2Client(_BearerClient):
    """``user=NAME ^A auth=Bearer TOKEN ^A ^A``; refused, an empty line."""

    name: ClassVar[str] = "XOAUTH2"
    _resigned: ClassVar[bytes] = b""

    def __init__(self, user: bytes, token: Secret) -> None:
        super().__init__(b"user=%b\1auth=Bearer %b\1\1" % (user, token.reveal()))


class OAuthBearerClient(_BearerClient):
    """The GS2 header names the user; refused, a line with ^A (RFC 7628 section 3.2.3)."""

    name: ClassVar[str] = "OAUTHBEARER"
    _resigned: ClassVar[bytes] = b"\1"

    def __init__(self, user: bytes, token: Secret) -> None:
        super().__init__(b"n,a=%b,\1auth=Bearer %b\1\1" % (encode_saslname(user), token.reveal()))


def bearer_client(mechanism: Literal["XOAUTH2", "OAUTHBEARER"], user: bytes, token: Secret) -> _BearerClient:
    """The exchange of `mechanism`."""
    return XOAuth2Client(user, token) if mechanism == "XOAUTH2" else OAuthBearerClient(user, token)
