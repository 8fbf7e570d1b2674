"""GSSAPI (RFC 4752), the initiator's side: popproxy proves to a backend for whom it comes, and lets it prove itself.

As on the acceptor's side, steps of the GSS context block (they may ask a KDC), so the exchange asks for them by
`NeedToken` and goes on in `token_made`; wrapping and unwrapping the few octets of the layers' negotiation does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar, Final

from popproxy.errors import LocalProtocolError, PopproxyError
from popproxy.sasl.client import ClientStep, NeedToken, Respond
from popproxy.sasl.credentials import Layer
from popproxy.sasl.gssapi import LEAST_PLAINTEXT, MAX_STEPS, MAX_TOKEN, GssSecurity
from popproxy.sasl.mechanism import SaslError

OUR_MAX_SIZE: Final = 64 * 1024
"""Longest wrapped token, in octets, that the server may send us in a security layer."""


class NoCommonLayer(PopproxyError):
    """The server offers no security layer that would do. `offered` is what it offers."""

    def __init__(self, offered: Layer) -> None:
        super().__init__(f"the server offers the security layers {_names(offered)}, and none of them will do")
        self.offered = offered


@dataclass(frozen=True, slots=True)
class Protection:
    """What protects the link from the server's +OK on: `layer` by `context`.

    `server_max` is the longest wrapped token, in octets, that the server takes.
    """

    layer: Layer
    context: GssSecurity
    server_max: int


class _Awaits(Enum):
    START = auto()
    STEP = auto()  # token_made
    TOKEN = auto()  # the server's next token
    OFFER = auto()  # the server's offer of security layers
    NOTHING = auto()


class GssapiClient:
    """One exchange. After an exception it is of no further use.

    `authzid` is always sent: a server that makes one out of the principal might find another maildrop. `layers` are
    those that will do, best first; under TLS, none. The server must prove itself, whatever the layer.
    """

    name: ClassVar[str] = "GSSAPI"

    def __init__(self, authzid: bytes, layers: Sequence[Layer]) -> None:
        if not authzid or b"\0" in authzid:
            raise LocalProtocolError("GSSAPI without an authorization identity")
        self._authzid = authzid
        self._layers = tuple(layers)
        self._awaits = _Awaits.START
        self._steps = 0
        self._context: GssSecurity | None = None  # once it is complete
        self.protection: Protection | None = None  # once a layer other than none has been chosen

    @property
    def done(self) -> bool:
        """The server has proved itself, and the choice of a layer has been sent."""
        return self._awaits is _Awaits.NOTHING

    def start(self) -> NeedToken:
        """The first token is the initial response."""
        if self._awaits is not _Awaits.START:
            raise LocalProtocolError("the exchange has begun")
        return self._need(None)

    def challenge(self, data: bytes) -> ClientStep:
        """Take the server's token, or its offer of layers. Raises SaslError, NoCommonLayer."""
        if len(data) > MAX_TOKEN:
            raise SaslError("GSSAPI token too long")
        if self._awaits is _Awaits.TOKEN:
            if not data:
                raise SaslError("a GSSAPI token was expected")
            return self._need(data)
        if self._awaits is _Awaits.OFFER:
            return self._choose(data)
        raise SaslError("a challenge that was not asked for")

    def token_made(self, context: GssSecurity, token: bytes | None) -> Respond:
        """The context has made its next token, or is complete without one. Raises SaslError."""
        if self._awaits is not _Awaits.STEP:
            raise LocalProtocolError("no token was asked for")
        if context.complete:
            if not context.mutual:
                raise SaslError("the server has not proved itself")
            self._context = context
            self._awaits = _Awaits.OFFER
        elif not token:
            raise SaslError("the GSS context has nothing to say, and is not complete")
        else:
            self._awaits = _Awaits.TOKEN
        return Respond(token or b"")

    def _need(self, token: bytes | None) -> NeedToken:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise SaslError("too many GSSAPI tokens")
        self._awaits = _Awaits.STEP
        return NeedToken(token)

    def _choose(self, data: bytes) -> Respond:
        """The server's offer (RFC 4752 section 3.2): a bit for each layer, three octets of size."""
        assert self._context is not None
        try:
            message, _ = self._context.unwrap(data)
        except PopproxyError:
            raise SaslError("the offer of security layers cannot be verified") from None
        if len(message) != 4:
            raise SaslError("the offer of security layers is not four octets long")
        offered, server_max = Layer(message[0] & 7), int.from_bytes(message[1:], "big")
        layer = next((layer for layer in self._layers if self._fits(layer, offered, server_max)), None)
        if layer is None:
            raise NoCommonLayer(offered)
        if layer is not Layer.NONE:
            self.protection = Protection(layer, self._context, server_max)
        our_max = 0 if layer is Layer.NONE else OUR_MAX_SIZE
        choice = bytes([layer]) + our_max.to_bytes(3, "big") + self._authzid
        try:
            answer = self._context.wrap(choice, confidential=False)
        except PopproxyError:
            raise SaslError("the GSS context is not usable any more") from None
        self._awaits = _Awaits.NOTHING
        return Respond(answer)

    def _fits(self, layer: Layer, offered: Layer, server_max: int) -> bool:
        context = self._context
        assert context is not None
        if not layer & offered:
            return False
        if layer is Layer.NONE:
            return True
        able = context.confidentiality if layer is Layer.CONFIDENTIALITY else context.integrity
        confidential = layer is Layer.CONFIDENTIALITY
        return able and context.wrap_size_limit(server_max, confidential=confidential) >= LEAST_PLAINTEXT


def _names(layers: Layer) -> str:
    names = [layer.name.lower() for layer in Layer if layer & layers and layer.name is not None]
    return " and ".join(names) or "(none at all)"
