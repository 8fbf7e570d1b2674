"""OAUTHBEARER and XOAUTH2: the examples of RFC 7628 and of Google, and what a refused client is told."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.sasl.credentials import TokenCredential
from popproxy.sasl.mechanism import Challenge, SaslError, Verify
from popproxy.sasl.oauth import OAuthBearer, OAuthRefusals, XOAuth2
from popproxy.types import Mechanism, Secret

REFUSALS = OAuthRefusals("mail", "https://issuer.example/.well-known/openid-configuration")
TOKEN = b"vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="


def test_the_example_of_rfc_7628() -> None:
    message = b"n,a=user@example.com,\1host=server.example.com\1port=143\1auth=Bearer " + TOKEN + b"\1\1"
    credential = TokenCredential(Mechanism.OAUTHBEARER, Secret(TOKEN), "user@example.com")
    assert OAuthBearer(REFUSALS).step(message) == Verify(credential, REFUSALS.token)


def test_the_example_of_google() -> None:
    message = b"user=someuser@example.com\1auth=Bearer ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg\1\1"
    credential = TokenCredential(
        Mechanism.XOAUTH2, Secret("ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg"), "someuser@example.com"
    )
    assert XOAuth2(REFUSALS).step(message) == Verify(credential, REFUSALS.xoauth2)


@pytest.mark.parametrize(
    ("message", "user"),
    [
        (b"n,,\1auth=Bearer t\1\1", ""),
        (b"y,a=al=2Cice=3D,\1auth=bearer t\1\1", "al,ice="),
        (b"n,a=b,\1host=x\1port=110\1auth=BEARER   t\1new=thing\1\1", "b"),
    ],
)
def test_oauthbearer_as_others_write_it(message: bytes, user: str) -> None:
    step = OAuthBearer(REFUSALS).step(message)
    assert step == Verify(TokenCredential(Mechanism.OAUTHBEARER, Secret("t"), user), REFUSALS.token)


@pytest.mark.parametrize("mechanism", [OAuthBearer, XOAuth2])
def test_without_an_initial_response_an_empty_challenge_asks(mechanism: type[OAuthBearer] | type[XOAuth2]) -> None:
    assert mechanism(REFUSALS).step(None) == Challenge(b"")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\1",
        b"n,a=u,\1auth=Bearer t\1",
        b"n,a=u,auth=Bearer t\1\1",
        b"n,a=u,\1auth=Bearer\1\1",
        b"n,a=u,\1auth=\1\1",  # RFC 7628 section 4.3: asks where to get a token
        b"n,a=u,\1host=h\1\1",
        b"n,a=u,\1auth=Basic dTpw\1\1",
        b"n,a=u,\1auth=Bearer t t\1\1",
        b"n,a=u,\1auth=Bearer t\1auth=Bearer u\1\1",
        b"n,a=u,\1auth=Bearer t\0\1\1",
        b"n,a=u,\1auth=Bearer " + b"t" * 8193 + b"\1\1",
        b"p=tls-unique,a=u,\1auth=Bearer t\1\1",
        b"n,a=u=2X,\1auth=Bearer t\1\1",
        b"n,a=\xff,\1auth=Bearer t\1\1",
        b"a=u,\1auth=Bearer t\1\1",
    ],
)
def test_a_malformed_oauthbearer_message_is_answered_in_json(message: bytes) -> None:
    with pytest.raises(SaslError) as caught:
        OAuthBearer(REFUSALS).step(message)
    assert json.loads(caught.value.refusal or b"") == {
        "status": "invalid_request",
        "scope": "mail",
        "openid-configuration": "https://issuer.example/.well-known/openid-configuration",
    }


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"user=a",
        b"user=a\1auth=Bearer t",
        b"user=a\1\1",
        b"user=a\1auth=Basic t\1\1",
        b"user=a\1user=b\1\1",
        b"\1\1",
    ],
)
def test_a_malformed_xoauth2_message_is_answered_in_json(message: bytes) -> None:
    with pytest.raises(SaslError) as caught:
        XOAuth2(REFUSALS).step(message)
    assert json.loads(caught.value.refusal or b"") == {"status": "400", "schemes": "Bearer", "scope": "mail"}


def test_what_is_not_configured_is_not_in_the_refusal() -> None:
    refusals = OAuthRefusals()
    assert json.loads(refusals.token) == {"status": "invalid_token"}
    assert json.loads(refusals.xoauth2) == {"status": "400", "schemes": "Bearer"}


def test_a_token_is_not_printed() -> None:
    step = OAuthBearer(REFUSALS).step(b"n,a=u,\1auth=Bearer hunter2\1\1")
    assert "hunter2" not in repr(step)


PIECES = st.lists(
    st.sampled_from([b"n,", b"y,", b"a=u", b",", b"\1", b"auth=", b"Bearer ", b"t", b"user=", b"=", b"\0", b"\xff"])
)


@given(st.one_of(st.binary(max_size=200), PIECES.map(b"".join)))
def test_any_octets_are_a_credential_or_an_error(message: bytes) -> None:
    for exchange in (OAuthBearer(REFUSALS), XOAuth2(REFUSALS)):
        with contextlib.suppress(SaslError):
            assert isinstance(exchange.step(message), Verify)
