"""PLAIN and LOGIN: octets in, a challenge or a credential out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.sasl.client import PlainClient
from popproxy.sasl.credentials import PasswordCredential
from popproxy.sasl.login import Login
from popproxy.sasl.mechanism import Challenge, SaslError, Verify
from popproxy.sasl.plain import Plain
from popproxy.types import Mechanism, Secret
from tests.peers.gnu_sasl import GnuSaslClient, GnuSaslError, GnuSaslServer


@pytest.mark.parametrize(
    ("message", "authzid", "authcid", "password"),
    [
        (b"\0tim\0tanstaaftanstaaf", "", "tim", b"tanstaaftanstaaf"),  # the examples of RFC 4616 section 4
        (b"Ursel\0Kurt\0xipj3plmq", "Ursel", "Kurt", b"xipj3plmq"),
        ("\0b\u00fccher\0pa\u00dfwort".encode(), "", "b\u00fccher", "pa\u00dfwort".encode()),
        (b"\0\0", "", "", b""),
        (b"\0a\0 spaces kept ", "", "a", b" spaces kept "),
        (b"\0a\0b\0c", "", "a", b"b\0c"),  # refused later, as every control character is
        (b"\0\xff\0p", "", "\udcff", b"p"),
        (b"z" * 255 + b"\0" + b"c" * 255 + b"\0" + b"p" * 255, "z" * 255, "c" * 255, b"p" * 255),
    ],
)
def test_plain(message: bytes, authzid: str, authcid: str, password: bytes) -> None:
    assert Plain().step(message) == Verify(PasswordCredential(Mechanism.PLAIN, authcid, Secret(password), authzid))


def test_plain_without_an_initial_response_asks_with_an_empty_challenge() -> None:
    plain = Plain()
    assert plain.step(None) == Challenge(b"")
    assert isinstance(plain.step(b"\0a\0b"), Verify)


@pytest.mark.parametrize("message", [b"", b"alice", b"\0alice", b"alice\0secret"])
def test_plain_with_a_part_missing_is_malformed(message: bytes) -> None:
    with pytest.raises(SaslError) as caught:
        Plain().step(message)
    assert caught.value.reason == "malformed"
    assert "alice" not in str(caught.value)
    assert "secret" not in str(caught.value)


@given(st.binary(), st.binary(), st.binary())
def test_plain_keeps_every_octet(authzid: bytes, authcid: bytes, password: bytes) -> None:
    authzid, authcid = authzid.replace(b"\0", b""), authcid.replace(b"\0", b"")
    step = Plain().step(b"\0".join((authzid, authcid, password)))
    assert isinstance(step, Verify)
    assert isinstance(step.credential, PasswordCredential)
    assert step.credential.authcid.encode("utf-8", "surrogateescape") == authcid
    assert step.credential.authzid.encode("utf-8", "surrogateescape") == authzid
    assert step.credential.password == Secret(password)


@pytest.mark.parametrize("initial", [None, b"alice"])
def test_login(initial: bytes | None) -> None:
    login = Login()
    if initial is None:
        assert login.step(None) == Challenge(b"Username:")
    assert login.step(b"alice") == Challenge(b"Password:")
    assert login.step(b"secret") == Verify(PasswordCredential(Mechanism.LOGIN, "alice", Secret(b"secret")))


def test_a_credential_does_not_print_its_secret() -> None:
    step = Plain().step(b"\0alice\0hunter2")
    assert "hunter2" not in repr(step)
    assert "hunter2" not in str(step)


NAMES = [("tim", ""), ("b\u00fccher@example.com", ""), ("popproxy", "alice")]


@pytest.mark.real
@pytest.mark.parametrize(("authid", "authzid"), NAMES)
def test_gnu_sasl_speaks_plain_to_us(authid: str, authzid: str) -> None:
    client = GnuSaslClient("PLAIN", authid=authid, password="pa\u00dfwort", **({"authzid": authzid} if authzid else {}))
    secret = Secret("pa\u00dfwort")
    assert Plain().step(client.step(b"")) == Verify(PasswordCredential(Mechanism.PLAIN, authid, secret, authzid))
    client.close()


@pytest.mark.real
@pytest.mark.parametrize(("authid", "authzid"), NAMES)
def test_we_speak_plain_to_gnu_sasl(authid: str, authzid: str) -> None:
    server = GnuSaslServer("PLAIN", "secret")
    server.step(PlainClient(authzid.encode(), authid.encode(), Secret("secret")).start().data)
    assert server.seen == (authid, authzid or authid, "secret")
    server.close()
    wary = GnuSaslServer("PLAIN", "another")
    with pytest.raises(GnuSaslError):
        wary.step(PlainClient(authzid.encode(), authid.encode(), Secret("secret")).start().data)
    wary.close()


@pytest.mark.real
def test_gnu_sasl_speaks_login_to_us() -> None:
    client, server = GnuSaslClient("LOGIN", authid="tim", password="tanstaaf"), Login()
    asked = server.step(None)
    assert isinstance(asked, Challenge)
    asked = server.step(client.step(asked.data))
    assert isinstance(asked, Challenge)
    step = server.step(client.step(asked.data))
    assert step == Verify(PasswordCredential(Mechanism.LOGIN, "tim", Secret("tanstaaf")))
    client.close()
