"""SCRAM verifiers: what RFCs, Dovecot and GNU SASL make of a password, and texts that are none."""

from __future__ import annotations

import base64
import contextlib
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.sasl.scram_verifier import (
    MAX_ITERATIONS,
    SCHEMES,
    UnusableVerifier,
    looks_like_verifier,
    make_verifier,
    parse_verifier,
)
from popproxy.types import Mechanism
from tests.peers.process import require

SHA_1, SHA_256 = SCHEMES
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
PENCIL = (  # made by GNU SASL 2.2: gsasl --mkpasswd
    "{SCRAM-SHA-256}4096,W22ZaJ0SNY7soEsUEjb6gQ==,"
    "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)


def test_a_verifier_is_what_gnu_sasl_makes() -> None:
    assert str(make_verifier(SHA_256, b"pencil", SALT, 4096)) == PENCIL


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_verifier_survives_its_text(scheme: Mechanism) -> None:
    verifier = make_verifier(scheme, "p\u00e4ss".encode(), b"0123456789abcdef", 4096)
    assert parse_verifier(str(verifier)) == verifier
    assert parse_verifier(str(verifier).replace("SCRAM", "scram")) == verifier
    assert looks_like_verifier(str(verifier))


def test_a_verifier_knows_its_password_however_it_is_spelt() -> None:
    verifier = make_verifier(SHA_1, "p\u00e4ss\u2168".encode(), b"0123456789abcdef", 4096)
    assert verifier.matches("pa\u0308ssIX".encode())
    assert not verifier.matches(b"passIX")
    assert not verifier.matches(b"\xff")
    assert not verifier.matches(b"")


@pytest.mark.parametrize(
    "password", [b"", b"\xff", b"a\x07", "\u06271".encode(), "\U0001f511".encode(), "\u00ad".encode()]
)
def test_a_password_that_scram_cannot_carry_has_no_verifier(password: bytes) -> None:
    with pytest.raises(UnusableVerifier) as caught:
        make_verifier(SHA_256, password, SALT, 4096)
    assert "\u0627" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{SCRAM-SHA-512}" + PENCIL[15:],
        PENCIL.replace("4096", "4095"),
        PENCIL.replace("4096", str(MAX_ITERATIONS + 1)),
        PENCIL.replace("4096", "04096"),
        PENCIL.replace("4096", "99999999999"),
        PENCIL.replace("W22Z", "W2Z"),
        PENCIL.replace("W22ZaJ0SNY7soEsUEjb6gQ==", "AAAA"),
        PENCIL.replace("256", "1"),
        PENCIL[:-1],
        PENCIL + ",",
        PENCIL + "\n",
        PENCIL.replace("=", "!"),
    ],
)
def test_a_text_that_is_no_verifier_is_refused_without_an_echo(text: str) -> None:
    with pytest.raises(UnusableVerifier) as caught:
        parse_verifier(text)
    assert "WG5d8" not in str(caught.value)


@given(st.text(max_size=200).map(lambda text: "{SCRAM-SHA-256}" + text))
def test_any_text_is_a_verifier_or_refused(text: str) -> None:
    with contextlib.suppress(UnusableVerifier):
        parse_verifier(text)


def test_the_keys_are_not_printed() -> None:
    assert "WG5d8" not in repr(parse_verifier(PENCIL))
    assert "WG5d8" not in f"{parse_verifier(PENCIL)!r}"


@pytest.mark.real
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("password", ["pencil", "p\u00e4ss w\u00f6rd", "\u2168\u00aa"])
def test_dovecot_makes_verifiers_that_we_read(scheme: Mechanism, password: str) -> None:
    command = [require("doveadm"), "-c", "/dev/null", "pw", "-s", scheme.value, "-p", password]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert parse_verifier(text).matches(password.encode()) or password == "\u2168\u00aa"  # Dovecot 2.3 prepares nothing
