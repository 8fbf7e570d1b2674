"""GSSAPI (RFC 4752) as POP3 speaks it (RFC 5034): the acceptor's side.

A step of a GSS context may read a keytab and write a replay cache, so it blocks. The exchange therefore never takes one
itself: `NeedStep` asks the caller to, in a thread, and `step_done` goes on from there. What the exchange does call
(`wrap`, `unwrap`, `wrap_size_limit`) is arithmetic on a few octets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from popproxy.errors import LocalProtocolError, PopproxyError
from popproxy.sasl.credentials import GssapiCredential, Layer
from popproxy.sasl.mechanism import Challenge, NeedStep, SaslError, Step, Verify

MAX_TOKEN: Final = 64 * 1024
"""Octets of a token; tickets that carry an Active Directory PAC reach tens of KiB."""
MAX_SIZE: Final = 0xFFFFFF
"""The longest wrapped token that the three octets of the layer message can name."""
MAX_AUTHZID: Final = 1024
"""Octets. Names are vetted later; this keeps nonsense out of there."""
MAX_STEPS: Final = 8
"""Kerberos takes one step, NTLM in SPNEGO two; a context that wants more is going nowhere."""
LEAST_PLAINTEXT: Final = 64
"""Octets that must fit into one token to the client: with less, a large message would become a flood of tokens."""


class GssSecurity(Protocol):
    """Either end's GSS context (RFC 2743) once it is there, used by one thread at a time.

    popproxy/kerberos/ has the real ones. What their methods raise is a PopproxyError.
    """

    @property
    def complete(self) -> bool:
        """Established. The properties below mean something only then."""
        ...

    @property
    def mutual(self) -> bool:
        """Both ends have proved who they are, or will have with the next token."""
        ...

    @property
    def integrity(self) -> bool:
        """Messages can be signed, and a replayed or reordered one is noticed."""
        ...

    @property
    def confidentiality(self) -> bool:
        """Messages can be encrypted."""
        ...

    def wrap(self, data: bytes, *, confidential: bool) -> bytes:
        """Sign `data`, and encrypt it if `confidential`. Raises if that cannot be, as when the context has expired."""
        ...

    def unwrap(self, token: bytes) -> tuple[bytes, bool]:
        """The data in `token`, and whether it was encrypted. Raises if it is forged, replayed or out of order."""
        ...

    def wrap_size_limit(self, token_size: int, *, confidential: bool) -> int:
        """The most octets of data whose token is no longer than `token_size`; 0 or less if none fit."""
        ...


class GssContext(GssSecurity, Protocol):
    """One acceptor's GSS context."""

    @property
    def initiator(self) -> str:
        """The client's principal, ``name@REALM``."""
        ...

    @property
    def target(self) -> str:
        """The principal of the service that the client's ticket is for."""
        ...

    def step(self, token: bytes) -> bytes | None:
        """Take the client's token; returns the answer to it, if there is one. Blocks. Raises if it is refused."""
        ...


@dataclass(frozen=True, slots=True)
class LayerOffer:
    """The security layers that may be chosen, and `max_size`, the longest wrapped token in octets that we take.

    Under TLS offer the default, Layer.NONE. Raises ValueError for an empty offer or a size that fits no layer.
    """

    layers: Layer = Layer.NONE
    max_size: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.layers <= 7:
            raise ValueError("offer at least one security layer")
        if self.layers != Layer.NONE and not 1 <= self.max_size <= MAX_SIZE:
            raise ValueError(f"a security layer needs a maximum size of 1 to {MAX_SIZE} octets")

    def within(self, context: GssContext) -> Layer:
        """What is left of the offer with this context; ``Layer(0)`` if nothing.

        Layers other than none need mutual authentication: RFC 4752 section 3.1 binds the client to ask for it.
        """
        allowed = Layer.NONE
        if context.mutual and context.integrity:
            allowed |= Layer.INTEGRITY
            if context.confidentiality:
                allowed |= Layer.CONFIDENTIALITY
        return self.layers & allowed


class _Awaits(Enum):
    START = auto()  # AUTH, with or without an initial response
    TOKEN = auto()  # the client's next token
    STEP = auto()  # step_done
    EMPTY = auto()  # the client's empty line behind our last token
    CHOICE = auto()  # the client's choice of a layer
    NOTHING = auto()


class GssapiExchange:
    """One GSSAPI exchange, from AUTH to the credential. After an exception it is of no further use.

    `lenient` tolerates a maximum size with layer none, which RFC 4752 forbids and fetchmail, mpop and mutt send.
    """

    def __init__(self, offer: LayerOffer, *, lenient: bool = True, max_token: int = MAX_TOKEN) -> None:
        self._offer = offer
        self._lenient = lenient
        self._max_token = max_token
        self._awaits = _Awaits.START
        self._steps = 0
        self._context: GssContext | None = None  # once it is complete
        self._offered = Layer(0)  # what of the offer the context allows

    @property
    def initiator(self) -> str:
        """The client's principal, once its ticket has been accepted; "" before."""
        return "" if self._context is None else self._context.initiator

    def step(self, response: bytes | None) -> Step:
        """Take the client's response, decoded: None at the start if it sent none. Raises SaslError."""
        awaited, self._awaits = self._awaits, _Awaits.NOTHING
        match awaited:
            case _Awaits.START if not response:
                self._awaits = _Awaits.TOKEN
                return Challenge(b"")
            case _Awaits.START | _Awaits.TOKEN:
                return self._token(response)
            case _Awaits.EMPTY:
                if response:
                    raise SaslError("an empty response was expected")
                return self._offer_layers()
            case _Awaits.CHOICE:
                return self._choice(response or b"")
            case _:
                raise LocalProtocolError(f"no response is expected while waiting for {awaited.name}")

    def step_done(self, context: GssContext, answer: bytes | None) -> Step:
        """The step that `NeedStep` asked for has been taken and gave `answer`. Raises SaslError."""
        if self._awaits is not _Awaits.STEP:
            raise LocalProtocolError("no step was asked for")
        if not context.complete:
            self._awaits = _Awaits.TOKEN
            return Challenge(answer or b"")
        self._context = context
        if answer:
            self._awaits = _Awaits.EMPTY
            return Challenge(answer)
        return self._offer_layers()

    def _token(self, token: bytes | None) -> NeedStep:
        if not token:
            raise SaslError("a GSSAPI token was expected")
        if len(token) > self._max_token:
            raise SaslError("GSSAPI token too long")
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise SaslError("too many GSSAPI tokens")
        self._awaits = _Awaits.STEP
        return NeedStep(token)

    def _offer_layers(self) -> Challenge:
        assert self._context is not None
        self._offered = self._offer.within(self._context)
        if not self._offered:
            raise SaslError("your Kerberos context allows no security layer that is offered here")
        max_size = 0 if self._offered == Layer.NONE else self._offer.max_size
        try:
            message = self._context.wrap(bytes([self._offered]) + max_size.to_bytes(3, "big"), confidential=False)
        except PopproxyError:
            raise SaslError("your Kerberos context is not usable any more") from None
        self._awaits = _Awaits.CHOICE
        return Challenge(message)

    def _choice(self, response: bytes) -> Verify:
        """The client's last message (RFC 4752 section 3.1): one bit, three octets of size, authzid."""
        assert self._context is not None
        if len(response) > self._max_token:
            raise SaslError("GSSAPI token too long")
        try:
            message, _ = self._context.unwrap(response)
        except PopproxyError:
            raise SaslError("the choice of a security layer cannot be verified") from None
        if len(message) < 4:
            raise SaslError("the choice of a security layer is too short")
        layer = self._chosen(message[0])
        max_size = self._client_max_size(layer, int.from_bytes(message[1:4], "big"))
        return Verify(
            GssapiCredential(
                self._context.initiator, self._context.target, _authzid(message[4:]), layer, max_size, self._context
            )
        )

    def _chosen(self, octet: int) -> Layer:
        if octet not in (Layer.NONE, Layer.INTEGRITY, Layer.CONFIDENTIALITY) or not octet & self._offered:
            raise SaslError("choose one of the security layers that are offered")
        return Layer(octet)

    def _client_max_size(self, layer: Layer, max_size: int) -> int:
        assert self._context is not None
        if layer is Layer.NONE:
            if max_size and not self._lenient:
                raise SaslError("without a security layer the maximum size must be 0")
            return 0
        if self._context.wrap_size_limit(max_size, confidential=layer is Layer.CONFIDENTIALITY) < LEAST_PLAINTEXT:
            raise SaslError("the maximum size is too small for the security layer")
        return max_size


def _authzid(octets: bytes) -> str:
    if len(octets) > MAX_AUTHZID or b"\0" in octets:
        raise SaslError("malformed authorization identity")
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise SaslError("malformed authorization identity") from None
