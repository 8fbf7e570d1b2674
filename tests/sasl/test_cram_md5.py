"""CRAM-MD5: the example of RFC 2195, and what is not CRAM-MD5."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.sasl.cram_md5 import CramMd5, digest
from popproxy.sasl.credentials import CramMd5Credential
from popproxy.sasl.mechanism import Challenge, SaslError, Verify
from popproxy.types import Secret
from tests.peers.gnu_sasl import GnuSaslClient

CHALLENGE = b"<1896.697170952@postoffice.reston.mci.net>"
DIGEST = b"b913a602c7eda7a495b4e6e7334d3890"


def answered(response: bytes) -> CramMd5Credential:
    exchange = CramMd5(CHALLENGE)
    assert exchange.step(None) == Challenge(CHALLENGE)
    step = exchange.step(response)
    assert isinstance(step, Verify)
    assert isinstance(step.credential, CramMd5Credential)
    return step.credential


def test_the_example_of_rfc_2195() -> None:
    assert digest(CHALLENGE, Secret("tanstaaftanstaaf")) == Secret(DIGEST)
    assert answered(b"tim " + DIGEST) == CramMd5Credential("tim", CHALLENGE, Secret(DIGEST))


def test_a_name_may_have_spaces_and_the_digest_capitals() -> None:
    credential = answered(b"two words " + DIGEST.upper())
    assert (credential.authcid, credential.digest) == ("two words", Secret(DIGEST))


def test_the_server_speaks_first() -> None:
    with pytest.raises(SaslError):
        CramMd5(CHALLENGE).step(b"tim " + DIGEST)


@pytest.mark.parametrize("response", [b"", b"tim", DIGEST, b" " + DIGEST, b"tim " + DIGEST[1:], b"tim " + b"g" * 32])
def test_what_is_malformed_is_refused_without_an_echo(response: bytes) -> None:
    with pytest.raises(SaslError) as caught:
        answered(response)
    assert "tim" not in str(caught.value)


@given(st.binary(max_size=300))
def test_any_octets_are_a_credential_or_an_error(response: bytes) -> None:
    with contextlib.suppress(SaslError):
        answered(response)


@pytest.mark.real
@pytest.mark.parametrize("user", ["tim", "b\u00fccher@example.com"])
def test_gnu_sasl_answers_as_we_expect(user: str) -> None:
    client = GnuSaslClient("CRAM-MD5", authid=user, password="tanstaaftanstaaf")
    credential = answered(client.step(CHALLENGE))
    client.close()
    assert credential.authcid == user
    assert credential.digest == digest(CHALLENGE, Secret("tanstaaftanstaaf"))
