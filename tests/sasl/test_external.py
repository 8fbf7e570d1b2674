"""EXTERNAL: the certificate is known already, the client says whom it wants to be."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.sasl.credentials import CertificateCredential
from popproxy.sasl.external import External
from popproxy.sasl.mechanism import Challenge, SaslError, Verify
from tests.peers.gnu_sasl import GnuSaslClient

DER = b"0\x82a certificate"


@pytest.mark.parametrize(
    ("response", "authzid"),
    [
        (b"", ""),
        (b"fred@example.com", "fred@example.com"),
        ("b\u00fccher".encode(), "b\u00fccher"),
        (b"\xff", "\udcff"),
    ],
)
def test_the_response_is_whom_the_client_wants_to_be(response: bytes, authzid: str) -> None:
    assert External(DER).step(response) == Verify(CertificateCredential(DER, authzid))
    exchange = External(DER)
    assert exchange.step(None) == Challenge(b"")  # RFC 4422 appendix A.2: without initial response
    assert exchange.step(response) == Verify(CertificateCredential(DER, authzid))


@pytest.mark.parametrize("response", [b"\0", b"a\0b", b"a" * 1025])
def test_what_cannot_be_a_name_is_refused(response: bytes) -> None:
    with pytest.raises(SaslError):
        External(DER).step(response)


def test_the_certificate_is_not_printed() -> None:
    assert "certificate'" not in repr(External(DER).step(b""))


@given(st.binary(max_size=2000))
def test_any_octets_are_a_credential_or_an_error(response: bytes) -> None:
    with contextlib.suppress(SaslError):
        assert isinstance(External(DER).step(response), Verify)


@pytest.mark.real
@pytest.mark.parametrize("authzid", ["", "b\u00fccher@example.com"])
def test_gnu_sasl_speaks_external_to_us(authzid: str) -> None:
    client = GnuSaslClient("EXTERNAL", authzid=authzid)
    assert External(DER).step(client.step(b"")) == Verify(CertificateCredential(DER, authzid))
    client.close()
