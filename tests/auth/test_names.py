"""Names and passwords as the rest of the program may see them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.auth.names import NameRefused, canonical, check_name, vet
from popproxy.sasl.credentials import ApopCredential, PasswordCredential
from popproxy.types import AuthFailure, Mechanism, Secret

CONTROLS = [*range(0x20), 0x7F]


def plain(authcid: str = "alice", password: bytes = b"secret", authzid: str = "") -> PasswordCredential:
    return PasswordCredential(Mechanism.PLAIN, authcid, Secret(password), authzid)


def refusal(credential: PasswordCredential | ApopCredential) -> AuthFailure:
    with pytest.raises(NameRefused) as refused:
        vet(credential)
    return refused.value.reason


@pytest.mark.parametrize("octet", CONTROLS)
@pytest.mark.parametrize("field", ["authcid", "authzid", "password"])
def test_every_control_octet_is_refused_in_every_field(octet: int, field: str) -> None:
    text = f"al{chr(octet)}ice"
    credential = plain(password=text.encode()) if field == "password" else plain(**{field: text})  # type: ignore[arg-type]
    assert refusal(credential) is AuthFailure.CONTROL_CHARACTER


@pytest.mark.parametrize("octet", CONTROLS)
def test_every_control_octet_is_refused_in_apop_names(octet: int) -> None:
    credential = ApopCredential(f"{chr(octet)}alice", b"<1@x>", Secret("0" * 32))
    assert refusal(credential) is AuthFailure.CONTROL_CHARACTER


@pytest.mark.parametrize("character", ["\x85", "\u200b", "\u200d", "\u202e", "\u2066", "\ufeff", "\u2028", "\u00ad"])
def test_invisible_and_bidirectional_characters_are_refused(character: str) -> None:
    assert refusal(plain(f"ali{character}ce")) is AuthFailure.CONTROL_CHARACTER


def test_empty_name_and_empty_password() -> None:
    for nothing in ("", " ", "\u00a0\u3000"):
        assert refusal(plain(nothing)) is AuthFailure.EMPTY
    assert refusal(plain(password=b"")) is AuthFailure.EMPTY


def test_length_and_encoding() -> None:
    assert check_name(b"a" * 255) == "a" * 255
    for raw in (b"a" * 256, b"\xff", b"\xc0\x80", b"\xed\xa0\x80", "\u0378".encode()):
        with pytest.raises(NameRefused) as refused:
            check_name(raw)
        assert refused.value.reason is AuthFailure.MALFORMED
    assert refusal(plain("a\udc80")) is AuthFailure.MALFORMED
    assert refusal(plain(password=b"p" * 1025)) is AuthFailure.MALFORMED
    with pytest.raises(NameRefused):
        vet(plain("a" * 250), default_domain="example.com")


def test_password_keeps_its_octets() -> None:
    assert vet(plain(password=b" sp ace\xff ")) == "alice"


@pytest.mark.parametrize(
    ("name", "domain", "case", "expected"),
    [
        ("Alice", None, "fold", "alice"),
        ("Alice", None, "keep", "Alice"),
        ("Alice", "Example.COM", "fold", "alice@example.com"),
        ("Alice", "Example.COM", "keep", "Alice@Example.COM"),
        ("alice@other.org", "example.com", "fold", "alice@other.org"),
        (" Alice \u00a0", "example.com", "fold", "alice@example.com"),
        ("two words", None, "fold", "two words"),
        ("JOSE\u0301", None, "fold", "jos\u00e9"),
        ("\uff41lice", None, "fold", "\uff41lice"),
    ],
)
def test_canonical_form(name: str, domain: str | None, case: str, expected: str) -> None:
    assert canonical(name, domain, case) == expected  # type: ignore[arg-type]


@given(st.text(min_size=1, max_size=40), st.sampled_from([None, "example.com"]), st.sampled_from(["fold", "keep"]))
def test_canonical_form_is_stable_and_normal(name: str, domain: str | None, case: str) -> None:
    once = canonical(name, domain, case)  # type: ignore[arg-type]
    assert canonical(once, domain, case) == once  # type: ignore[arg-type]
    assert unicodedata.is_normalized("NFC", once)


@given(st.binary(max_size=300))
def test_any_octets_give_a_printable_name_or_a_refusal(raw: bytes) -> None:
    try:
        name = check_name(raw)
    except NameRefused:
        return
    assert name.encode() == raw
    assert all(unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in name)


def test_authzid_must_be_oneself() -> None:
    assert vet(plain(authzid="")) == "alice"
    assert vet(plain("ALICE", authzid="alice@example.com"), "example.com") == "alice@example.com"
    assert refusal(plain(authzid="bob")) is AuthFailure.AUTHZID
    with pytest.raises(NameRefused):
        vet(plain("Alice", authzid="alice"), None, "keep")


def test_refusal_does_not_repeat_what_was_refused() -> None:
    with pytest.raises(NameRefused) as refused:
        vet(plain("canary\n", b"canary"))
    assert "canary" not in f"{refused.value}{refused.value!r}"
