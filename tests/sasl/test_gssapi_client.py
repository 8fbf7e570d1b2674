"""The initiator's side of GSSAPI against the acceptor's: both must come to the same layer, or to none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.errors import LocalProtocolError
from popproxy.sasl.client import ClientStep, NeedToken, PlainClient, Respond
from popproxy.sasl.credentials import GssapiCredential, Layer
from popproxy.sasl.gssapi import LEAST_PLAINTEXT, MAX_STEPS, GssapiExchange, LayerOffer
from popproxy.sasl.gssapi_client import OUR_MAX_SIZE, GssapiClient, NoCommonLayer
from popproxy.sasl.mechanism import Challenge, NeedStep, SaslError, Verify
from popproxy.types import Secret
from tests.peers.gss_double import OVERHEAD, TransparentContext

LAYERS = [Layer.NONE, Layer.INTEGRITY, Layer.CONFIDENTIALITY]


def negotiate(
    client: GssapiClient, server: GssapiExchange, ours: TransparentContext, theirs: TransparentContext
) -> GssapiCredential:
    """Both ends, until the server has a credential."""
    step: ClientStep = client.start()
    sent: bytes | None = None
    while True:
        if isinstance(step, NeedToken):
            step = client.token_made(ours, ours.step(step.token or b""))
            continue
        assert isinstance(step, Respond)
        answer = server.step(step.data)
        if isinstance(answer, NeedStep):
            answer = server.step_done(theirs, theirs.step(answer.token))
        if isinstance(answer, Verify):
            assert isinstance(answer.credential, GssapiCredential)
            return answer.credential
        assert isinstance(answer, Challenge)
        sent = answer.data
        step = client.challenge(sent)


@given(
    acceptable=st.lists(st.sampled_from(LAYERS), min_size=1, max_size=3, unique=True),
    offered=st.lists(st.sampled_from(LAYERS), min_size=1, max_size=3, unique=True),
    max_size=st.integers(1, 100_000),
    confidentiality=st.booleans(),
    authzid=st.text(st.characters(min_codepoint=33, codec="utf-8"), min_size=1, max_size=40),
)
def test_both_ends_agree(
    acceptable: list[Layer], offered: list[Layer], max_size: int, confidentiality: bool, authzid: str
) -> None:
    mask = Layer(0)
    for one in offered:
        mask |= one
    ours = TransparentContext([b"AP-REQ", None], confidentiality=confidentiality)
    theirs = TransparentContext([b"AP-REP"])
    client = GssapiClient(authzid.encode(), acceptable)
    server = GssapiExchange(LayerOffer(mask, max_size if mask != Layer.NONE else 0), lenient=False)
    possible = [
        one
        for one in acceptable
        if one in offered
        and (one is not Layer.CONFIDENTIALITY or confidentiality)
        and (one is Layer.NONE or max_size - OVERHEAD >= LEAST_PLAINTEXT)
    ]
    if not possible:
        with pytest.raises(NoCommonLayer) as caught:
            negotiate(client, server, ours, theirs)
        assert caught.value.offered == mask
        assert not client.done
        return
    credential = negotiate(client, server, ours, theirs)
    assert credential.layer is possible[0], "the best of ours that the server has"
    assert credential.authzid == authzid
    assert client.done
    if possible[0] is Layer.NONE:
        assert client.protection is None
        return
    assert credential.client_max_size == OUR_MAX_SIZE
    assert client.protection is not None
    assert (client.protection.layer, client.protection.server_max) == (possible[0], max_size)


@pytest.mark.parametrize("authzid", [b"", b"a\0b"])
def test_a_name_is_always_sent(authzid: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        GssapiClient(authzid, [Layer.NONE])


def test_tokens_without_end() -> None:
    client, context = GssapiClient(b"alice", [Layer.NONE]), TransparentContext([b"more"] * 20)
    client.start()
    for _ in range(MAX_STEPS - 1):
        client.token_made(context, context.step(b""))
        client.challenge(b"more")
    client.token_made(context, context.step(b""))
    with pytest.raises(SaslError, match="too many"):
        client.challenge(b"more")


@pytest.mark.parametrize("size", [65_536, 65_537])
def test_the_longest_token(size: int) -> None:
    client, context = GssapiClient(b"alice", [Layer.NONE]), TransparentContext([b"AP-REQ", None])
    client.start()
    client.token_made(context, context.step(b""))
    if size > 65_536:
        with pytest.raises(SaslError, match="too long"):
            client.challenge(b"x" * size)
    else:
        assert isinstance(client.challenge(b"x" * size), NeedToken)


def test_a_context_that_falls_silent() -> None:
    client, context = GssapiClient(b"alice", [Layer.NONE]), TransparentContext([None, None])
    client.start()
    with pytest.raises(SaslError, match="nothing to say"):
        client.token_made(context, context.step(b""))


def test_out_of_turn() -> None:
    client, context = GssapiClient(b"alice", [Layer.NONE]), TransparentContext([b"AP-REQ", None])
    with pytest.raises(LocalProtocolError):
        client.token_made(context, b"token")
    with pytest.raises(SaslError):
        client.challenge(b"AP-REP")
    client.start()
    with pytest.raises(LocalProtocolError):
        client.start()
    with pytest.raises(SaslError):
        client.challenge(b"AP-REP")


def test_an_expired_context_makes_no_choice() -> None:
    ours, theirs = TransparentContext([b"AP-REQ", None]), TransparentContext()
    client = GssapiClient(b"alice", [Layer.NONE])
    client.start()
    client.token_made(ours, ours.step(b""))
    client.challenge(b"AP-REP")
    client.token_made(ours, ours.step(b""))
    ours.expired = True
    with pytest.raises(SaslError, match="not usable"):
        client.challenge(theirs.wrap(b"\x01\0\0\0", confidential=False))


def test_plain() -> None:
    client = PlainClient(b"alice", b"proxy", Secret("canary-pw"))
    before = client.done
    assert client.start() == Respond(b"alice\0proxy\0canary-pw")
    assert (before, client.done) == (False, True)
    with pytest.raises(SaslError):
        client.challenge(b"")
    assert "canary" not in repr(client) + repr(vars(client))
