"""SASLprep: the examples of RFC 4013, and the same answers as others give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scramp.utils import ScramException
from scramp.utils import saslprep as scramp_saslprep

from popproxy.sasl.saslprep import NotPreparable, saslprep
from tests.peers import gnu_sasl


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("I\u00adX", "IX"),  # RFC 4013 section 3
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("\u212b", "\u00e5".upper()),
        ("p\u00e4ss", "p\u00e4ss"),
        ("pa\u0308ss", "p\u00e4ss"),
        ("\u0627\u0628", "\u0627\u0628"),
        ("", ""),
        ("\u00ad", ""),
    ],
)
def test_what_is_prepared(text: str, prepared: str) -> None:
    assert saslprep(text) == prepared
    assert saslprep(text, stored=True) == prepared


@pytest.mark.parametrize(
    "text",
    [
        "\u0007",  # RFC 4013 section 3
        "\u06271",
        "a\nb",
        "\x7f",
        "\u0085",
        "\ue000",
        "\ufffd",
        "\u200e",
        "\u2028",
        chr(0xD800),
        "a\u0627",
        "\u0627a\u0627",
        "\U000e0001",
    ],
)
def test_what_is_prohibited(text: str) -> None:
    with pytest.raises(NotPreparable) as caught:
        saslprep(text)
    assert text not in str(caught.value)


def test_a_code_point_that_unicode_3_2_does_not_know_may_be_asked_for_but_not_kept() -> None:
    assert saslprep("\u0221") == "\u0221"
    assert saslprep("\U0001f511") == "\U0001f511"
    for text in ("\u0221", "\U0001f511"):
        with pytest.raises(NotPreparable):
            saslprep(text, stored=True)


@given(st.text(max_size=30))
def test_preparing_twice_is_preparing_once(text: str) -> None:
    try:
        prepared = saslprep(text, stored=True)
    except NotPreparable:
        return
    assert saslprep(prepared, stored=True) == prepared


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x3000), max_size=12))
def test_scramp_prepares_alike(text: str) -> None:
    try:
        expected: str | None = scramp_saslprep(text)
    except ScramException:
        expected = None
    try:
        found: str | None = saslprep(text, stored=True)
    except NotPreparable:
        found = None
    assert found == expected


@pytest.mark.real
@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x3000), min_size=1, max_size=12), st.booleans())
def test_gnu_sasl_prepares_alike(text: str, stored: bool) -> None:
    try:
        expected: str | None = gnu_sasl.saslprep(text, stored=stored)
    except gnu_sasl.GnuSaslError:
        expected = None
    try:
        found: str | None = saslprep(text, stored=stored)
    except NotPreparable:
        found = None
    assert found == expected
