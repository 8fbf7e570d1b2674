"""What a client does with a Kerberos ticket: AUTH GSSAPI, and KPOP's handshake."""

from __future__ import annotations

import base64
from contextlib import AbstractContextManager
from typing import Protocol

from popproxy.demo.client import Client, MismatchError
from popproxy.errors import PopproxyError
from popproxy.net.gss_layer import GssLayer
from popproxy.sasl.client import ClientStep, NeedToken
from popproxy.sasl.credentials import Layer
from popproxy.sasl.gssapi import GssSecurity
from popproxy.sasl.gssapi_client import OUR_MAX_SIZE, GssapiClient
from popproxy.wire.kpop import APPLICATION_VERSION, SENDAUTH_VERSION


class Ticket(GssSecurity, Protocol):
    """An Initiator, whose libraries need not be there."""

    def step(self, token: bytes | None) -> bytes | None:
        """The next token. Raises PopproxyError."""
        ...


class BareTicket(Protocol):
    """An ApExchange, whose libraries need not be there."""

    @property
    def request(self) -> bytes:
        """The AP-REQ, in DER."""
        ...

    def prove(self, reply: bytes) -> None:
        """Take the AP-REP. Raises PopproxyError."""
        ...


def authenticate(client: Client, context: Ticket, user: str, layers: tuple[Layer, ...]) -> Layer:
    """AUTH GSSAPI (RFC 4752, RFC 5034); must succeed. Starts and returns the layer, the first of `layers` there is."""
    exchange = GssapiClient(user.encode(), layers)
    try:
        client.ask("AUTH GSSAPI", b"+ ")  # a ticket is too long for the command line (RFC 5034 section 4)
        step: ClientStep = exchange.start()
        while True:
            if isinstance(step, NeedToken):
                step = exchange.token_made(context, context.step(step.token))
            client.send_octets(base64.b64encode(step.data) + b"\r\n")
            client.transcript.append(f"C: ({len(step.data)} octets)")
            line = client.expect(b"+")
            if not line.startswith(b"+ "):
                break
            step = exchange.challenge(base64.b64decode(line[2:]))
    except PopproxyError as error:
        raise MismatchError(f"GSSAPI: {error}") from None
    protection = exchange.protection
    if protection is None:
        return Layer.NONE
    confidential = protection.layer is Layer.CONFIDENTIALITY
    client.start_layer(GssLayer(context, protection.server_max, OUR_MAX_SIZE, confidential))
    client.transcript.append(f"   (everything in tokens of the ticket's key: {protection.layer.name})")
    return protection.layer


def shake_hands(client: Client, ticket: AbstractContextManager[BareTicket]) -> None:
    """KPOP before its greeting: two versions and an AP-REQ; the proxy must prove itself, too. Must succeed."""
    try:
        with ticket as exchange:
            request = exchange.request
            client.send_octets(_framed(SENDAUTH_VERSION) + _framed(APPLICATION_VERSION) + _framed(request))
            client.transcript.append(f"C: KRB5_SENDAUTH_V1.0, KPOPV1.0, AP-REQ  ({len(request)} octets)")
            if client.take(1) != b"\0":
                raise MismatchError("the versions are refused")
            error = client.take(int.from_bytes(client.take(4), "big"))
            if error:
                raise MismatchError(f"the ticket is refused: KRB-ERROR of {len(error)} octets")
            proof = client.take(int.from_bytes(client.take(4), "big"))
            exchange.prove(proof)
            client.transcript.append(f"S: AP-REP  ({len(proof)} octets, verified)")
    except PopproxyError as error:
        raise MismatchError(f"KPOP: {error}") from None


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message
