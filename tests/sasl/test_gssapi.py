"""The acceptor's side of GSSAPI, octet by octet; `test_gssapi_kerberos.py` has it with real tickets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.errors import LocalProtocolError
from popproxy.sasl.credentials import GssapiCredential, Layer
from popproxy.sasl.gssapi import (
    MAX_AUTHZID,
    MAX_SIZE,
    MAX_STEPS,
    MAX_TOKEN,
    GssapiExchange,
    LayerOffer,
)
from popproxy.sasl.mechanism import Challenge, NeedStep, SaslError, Step, Verify
from popproxy.types import Mechanism
from tests.peers.gss_double import OVERHEAD, TransparentContext

ALL = LayerOffer(Layer.NONE | Layer.INTEGRITY | Layer.CONFIDENTIALITY, 65536)
NONE = LayerOffer()
ENOUGH = 64 + OVERHEAD  # the smallest maximum size that is taken


def run(exchange: GssapiExchange, context: TransparentContext, responses: Sequence[bytes | None]) -> Step:
    """Plays the responses and takes the steps that are asked for; returns the last answer."""
    step: Step | None = None
    for response in responses:
        step = exchange.step(response)
        if isinstance(step, NeedStep):
            step = exchange.step_done(context, context.step(step.token))
    assert step is not None
    return step


def at_choice(
    offer: LayerOffer = ALL, context: TransparentContext | None = None, *, lenient: bool = True
) -> tuple[GssapiExchange, TransparentContext, bytes]:
    """An exchange that waits for the choice of a layer, the client's end of its context, the message that was sent."""
    exchange = GssapiExchange(offer, lenient=lenient)
    step = run(exchange, context or TransparentContext([None]), [b"token"])
    assert isinstance(step, Challenge)
    client = TransparentContext()
    message, encrypted = client.unwrap(step.data)
    assert not encrypted
    return exchange, client, message


def choose(exchange: GssapiExchange, client: TransparentContext, message: bytes) -> GssapiCredential:
    step = exchange.step(client.wrap(message, confidential=False))
    assert isinstance(step, Verify)
    assert isinstance(step.credential, GssapiCredential)
    return step.credential


@pytest.mark.parametrize("start", [[None, b"token"], [b"", b"token"], [b"token"]])
def test_with_and_without_an_initial_response(start: list[bytes | None]) -> None:
    context = TransparentContext([b"answer"])
    exchange = GssapiExchange(ALL)
    for response in start[:-1]:
        assert exchange.step(response) == Challenge(b"")
    assert exchange.step(start[-1]) == NeedStep(b"token")
    assert exchange.step_done(context, context.step(b"token")) == Challenge(b"answer")


def test_a_mutual_exchange_from_start_to_end() -> None:
    context = TransparentContext([b"answer"])
    exchange = GssapiExchange(ALL)
    step = run(exchange, context, [None, b"token", b""])
    assert isinstance(step, Challenge)
    client = TransparentContext()
    assert client.unwrap(step.data) == (b"\x07\x01\x00\x00", False)
    credential = choose(exchange, client, b"\x04\x00\x04\x00b\xc3\xbccher")
    assert credential == GssapiCredential(
        context.initiator, context.target, "b\u00fccher", Layer.CONFIDENTIALITY, 1024, context, Mechanism.GSSAPI
    )
    assert credential.context is context
    assert credential.authcid == "alice@POPPROXY.TEST"


def test_a_context_may_take_several_steps() -> None:
    context = TransparentContext([b"1", None, b"", b"3"])
    exchange = GssapiExchange(NONE)
    answers = [run(exchange, context, [token]) for token in (b"a", b"b", b"c", b"d")]
    assert answers == [Challenge(b"1"), Challenge(b""), Challenge(b""), Challenge(b"3")]
    assert context.tokens == [b"a", b"b", b"c", b"d"]


def test_the_last_token_must_be_answered_by_an_empty_line() -> None:
    exchange = GssapiExchange(ALL)
    assert run(exchange, TransparentContext([b"answer"]), [b"token"]) == Challenge(b"answer")
    with pytest.raises(SaslError):
        exchange.step(b"\0")


@pytest.mark.parametrize("answer", [None, b""])
def test_without_a_last_token_the_layers_follow_at_once(answer: bytes | None) -> None:
    step = run(GssapiExchange(NONE), TransparentContext([answer], mutual=False), [b"token"])
    assert isinstance(step, Challenge)
    assert TransparentContext().unwrap(step.data) == (b"\x01\0\0\0", False)


@pytest.mark.parametrize(
    ("offered", "mutual", "integrity", "confidentiality", "mask"),
    [
        (7, True, True, True, 7),
        (7, True, True, False, 3),
        (7, True, False, False, 1),
        (7, True, False, True, 1),  # to be encrypted and not signed is no protection
        (7, False, True, True, 1),  # RFC 4752: layers need mutual authentication
        (6, True, True, True, 6),
        (6, True, True, False, 2),
        (4, True, True, True, 4),
        (1, True, True, True, 1),
    ],
)
def test_only_layers_that_the_context_allows_are_offered(
    offered: int, mutual: bool, integrity: bool, confidentiality: bool, mask: int
) -> None:
    context = TransparentContext([None], mutual=mutual, integrity=integrity, confidentiality=confidentiality)
    offer = LayerOffer(Layer(offered), 4096)
    message = at_choice(offer, context)[2]
    assert message == bytes([mask]) + (b"\0\0\0" if mask == 1 else b"\0\x10\0")


@pytest.mark.parametrize("flags", [{"integrity": False}, {"mutual": False}])
def test_a_context_without_the_required_layer_is_refused(flags: dict[str, bool]) -> None:
    offer = LayerOffer(Layer.INTEGRITY | Layer.CONFIDENTIALITY, 4096)
    with pytest.raises(SaslError, match="no security layer"):
        run(GssapiExchange(offer), TransparentContext([None], **flags), [b"token"])


@pytest.mark.parametrize("layer", list(Layer))
def test_each_layer_can_be_chosen(layer: Layer) -> None:
    exchange, client, _ = at_choice()
    credential = choose(exchange, client, bytes([layer, 0, 8, 0]))
    assert (credential.layer, credential.client_max_size) == (layer, 0 if layer is Layer.NONE else 2048)
    assert credential.authzid == ""


@pytest.mark.parametrize(
    ("offer", "message"),
    [
        *((ALL, bytes([mask, 0, 8, 0])) for mask in range(256) if mask not in (1, 2, 4)),
        (NONE, b"\x02\0\x08\0"),
        (NONE, b"\x04\0\x08\0"),
        (LayerOffer(Layer.NONE | Layer.INTEGRITY, 4096), b"\x04\0\x08\0"),
        (LayerOffer(Layer.CONFIDENTIALITY, 4096), b"\x01\0\0\0"),
        (LayerOffer(Layer.CONFIDENTIALITY, 4096), b"\x02\0\x08\0"),
        (ALL, b""),
        (ALL, b"\x01"),
        (ALL, b"\x01\0\0"),
        (ALL, b"\x02\0\0\0"),
        (ALL, b"\x04\0\0\0"),
        (ALL, b"\x02" + (ENOUGH - 1).to_bytes(3, "big")),
        (ALL, b"\x01\0\0\0alice\0"),
        (ALL, b"\x01\0\0\0\0"),
        (ALL, b"\x01\0\0\0a\0b"),
        (ALL, b"\x01\0\0\0\xff"),
        (ALL, b"\x01\0\0\0\xc0\x80"),  # an overlong NUL
        (ALL, b"\x01\0\0\0\xed\xa0\x80"),  # a surrogate
        (ALL, b"\x01\0\0\0" + b"a" * (MAX_AUTHZID + 1)),
    ],
)
def test_nonsense_in_the_last_step_is_refused(offer: LayerOffer, message: bytes) -> None:
    exchange, client, _ = at_choice(offer)
    with pytest.raises(SaslError) as caught:
        exchange.step(client.wrap(message, confidential=False))
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize("size", [ENOUGH, 1024, MAX_SIZE])
def test_the_clients_maximum_size(size: int) -> None:
    exchange, client, _ = at_choice()
    assert choose(exchange, client, b"\x02" + size.to_bytes(3, "big")).client_max_size == size


def test_a_maximum_size_without_a_layer_is_tolerated_only_by_the_lenient() -> None:
    message = b"\x01\x01\x00\x00alice"  # fetchmail, mpop, mutt
    exchange, client, _ = at_choice()
    assert choose(exchange, client, message) == GssapiCredential(client.initiator, client.target, "alice")
    exchange, client, _ = at_choice(lenient=False)
    with pytest.raises(SaslError):
        exchange.step(client.wrap(message, confidential=False))


@pytest.mark.parametrize("response", [b"", None, b"\x01\0\0\0", b"W", b"W\0\0\0\0\0\0\0\0\0\x01\0\0\0alice"])
def test_a_last_step_that_cannot_be_verified_is_refused(response: bytes | None) -> None:
    exchange = at_choice()[0]
    with pytest.raises(SaslError, match="cannot be verified"):
        exchange.step(response)


def test_a_replayed_message_is_no_choice() -> None:
    exchange, client, _ = at_choice()
    client.wrap(b"\x01\0\0\0", confidential=False)
    with pytest.raises(SaslError, match="cannot be verified"):
        exchange.step(client.wrap(b"\x01\0\0\0", confidential=False))


@given(st.binary(max_size=12))
def test_any_last_message_is_a_credential_or_refused(message: bytes) -> None:
    exchange, client, _ = at_choice()
    try:
        credential = choose(exchange, client, message)
    except SaslError:
        return
    assert message[0] in (1, 2, 4)
    assert credential.layer == message[0]
    assert credential.authzid.encode() == message[4:]


@given(st.binary(min_size=1, max_size=40))
def test_any_octets_in_place_of_the_last_message_are_refused(response: bytes) -> None:
    exchange = at_choice()[0]
    with pytest.raises(SaslError):
        exchange.step(response)


@pytest.mark.parametrize("responses", [[None, b""], [b"", b""], [None, None]])
def test_an_empty_token_is_refused(responses: list[bytes | None]) -> None:
    with pytest.raises(SaslError):
        run(GssapiExchange(NONE), TransparentContext([None]), responses)


def test_the_size_of_a_token_is_bounded() -> None:
    assert GssapiExchange(NONE).step(b"t" * MAX_TOKEN) == NeedStep(b"t" * MAX_TOKEN)
    with pytest.raises(SaslError, match="too long"):
        GssapiExchange(NONE).step(b"t" * (MAX_TOKEN + 1))
    with pytest.raises(SaslError, match="too long"):
        GssapiExchange(NONE, max_token=10).step(b"t" * 11)
    exchange = at_choice()[0]
    with pytest.raises(SaslError, match="too long"):
        exchange.step(b"t" * (MAX_TOKEN + 1))


def test_the_number_of_steps_is_bounded() -> None:
    context = TransparentContext([b"more"] * (MAX_STEPS + 2))
    exchange = GssapiExchange(NONE)
    run(exchange, context, [b"token"] * MAX_STEPS)
    with pytest.raises(SaslError, match="too many"):
        exchange.step(b"token")
    assert len(context.tokens) == MAX_STEPS


def test_a_context_that_has_expired_is_refused() -> None:
    context = TransparentContext([None])
    context.expired = True
    with pytest.raises(SaslError):
        run(GssapiExchange(NONE), context, [b"token"])


def test_calls_out_of_turn_are_bugs_of_ours() -> None:
    exchange, context = GssapiExchange(NONE), TransparentContext([None])
    with pytest.raises(LocalProtocolError):
        exchange.step_done(context, b"")
    exchange.step(b"token")
    with pytest.raises(LocalProtocolError):
        exchange.step(b"token")
    exchange, client, _ = at_choice()
    choose(exchange, client, b"\x01\0\0\0")
    with pytest.raises(LocalProtocolError):
        exchange.step(b"")


def test_an_exchange_that_has_failed_takes_no_second_try() -> None:
    exchange, client, _ = at_choice()
    with pytest.raises(SaslError):
        exchange.step(b"nonsense")
    with pytest.raises(LocalProtocolError):
        exchange.step(client.wrap(b"\x01\0\0\0", confidential=False))


@pytest.mark.parametrize(("layers", "size"), [(0, 0), (8, 10), (2, 0), (7, MAX_SIZE + 1), (4, -1)])
def test_an_offer_that_cannot_be_is_refused(layers: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        LayerOffer(Layer(layers), size)


def test_a_credential_does_not_print_its_context() -> None:
    exchange, client, _ = at_choice()
    assert "Transparent" not in repr(choose(exchange, client, b"\x01\0\0\0"))
