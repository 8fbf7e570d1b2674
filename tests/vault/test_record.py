"""What is kept for one user: what follows from a password, what survives, and what is no record."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popproxy.errors import VaultError
from popproxy.sasl.scram_verifier import SCHEMES
from popproxy.types import Secret
from popproxy.vault.record import Kind, Record, decode

CANARY = "canary-5ecret"


def test_a_password_is_kept_in_clear_and_as_verifiers() -> None:
    record = Record().with_password(Secret(CANARY))
    assert record.secret == Secret(CANARY)
    assert list(record.verifiers) == list(SCHEMES)
    assert all(verifier.matches(CANARY.encode()) for verifier in record.verifiers.values())
    assert record.kinds == [Kind.PASSWORD, Kind.SCRAM]


def test_verifiers_replace_a_password_in_clear() -> None:
    record = Record().with_password(Secret("old")).with_rpop(Secret("hash")).with_verifiers(Secret("new"))
    assert record.secret is None
    assert record.rpop == Secret("hash")
    assert all(verifier.matches(b"new") for verifier in record.verifiers.values())
    assert record.kinds == [Kind.SCRAM, Kind.RPOP]


@pytest.mark.parametrize("password", [b"\xff\xfe", "\ue000".encode(), "\u00ad".encode()])
def test_a_password_that_scram_cannot_carry_has_no_verifiers(password: bytes) -> None:
    assert Record().with_password(Secret(password)).kinds == [Kind.PASSWORD]
    with pytest.raises(VaultError, match=r"SCRAM|empty"):
        Record().with_verifiers(Secret(password))


@pytest.mark.parametrize("password", [b"", b"a\nb", b"\x7f", b"x" * 1025])
def test_what_pop3_cannot_carry_is_refused(password: bytes) -> None:
    for make in (Record().with_password, Record().with_verifiers, Record().with_rpop, Record().with_backend):
        with pytest.raises(VaultError):
            make(Secret(password))


def test_taking_kinds_away() -> None:
    record = Record().with_password(Secret("x")).with_rpop(Secret("hash"))
    assert record.without(Kind.RPOP).kinds == [Kind.PASSWORD, Kind.SCRAM]
    assert record.without(Kind.SCRAM).kinds == [Kind.PASSWORD, Kind.RPOP]
    assert record.without(Kind.PASSWORD).kinds == [Kind.RPOP]
    assert record.without(Kind.PASSWORD).without(Kind.RPOP).kinds == []


def test_passwords_and_tokens_for_backends_stand_beside_the_users_own() -> None:
    record = Record().with_backend(Secret("behind")).with_refresh_token(Secret("0.AX~/+="))
    assert record.secret is None, "they prove nobody here"
    assert record.for_backend == Secret("behind")
    assert record.kinds == [Kind.BACKEND, Kind.REFRESH_TOKEN]
    assert decode(record.encode()) == record
    both = record.with_password(Secret("own"))
    assert (both.secret, both.for_backend) == (Secret("own"), Secret("behind"))
    assert both.without(Kind.BACKEND).for_backend == Secret("own")
    assert both.without(Kind.PASSWORD).without(Kind.REFRESH_TOKEN).kinds == [Kind.BACKEND]
    for wrong in (b"", b"a b", b"a\nb", b"\xff", b"x" * 8193):
        with pytest.raises(VaultError):
            record.with_refresh_token(Secret(wrong))


@settings(max_examples=20)
@given(
    st.none() | st.binary(min_size=1, max_size=100).map(lambda octets: bytes(o for o in octets if 0x20 <= o != 0x7F)),
    st.booleans(),
)
def test_a_record_survives_its_octets(secret: bytes | None, rpop: bool) -> None:
    record = Record().with_rpop(Secret("$argon2id$x")) if rpop else Record()
    if secret:
        record = record.with_password(Secret(secret))
    assert decode(record.encode()) == record


@pytest.mark.parametrize(
    "octets", [b"unknown thing\n", b"verifier x\n", b"verifier \xff\n", b"verifier {SCRAM-SHA-256}1,a,b,c\n"]
)
def test_octets_that_are_no_record(octets: bytes) -> None:
    with pytest.raises(VaultError):
        decode(Secret(octets))


def test_nothing_of_it_is_printed() -> None:
    assert CANARY not in repr(Record().with_password(Secret(CANARY)).with_rpop(Secret(CANARY)))
