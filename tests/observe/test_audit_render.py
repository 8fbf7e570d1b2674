"""Whatever a peer sends becomes one piece of valid, harmless JSON."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.observe.audit_render import MAX_FIELD_OCTETS, json_octets, json_string, json_value
from popproxy.types import Secret

ANY_TEXT = st.text(alphabet=st.characters(codec=None, exclude_categories=()))
PRINTABLE_ASCII = re.compile(r"[ -~]*")


@given(ANY_TEXT)
def test_any_text_becomes_printable_ascii_json(text: str) -> None:
    rendered = json_string(text)
    assert PRINTABLE_ASCII.fullmatch(rendered)
    json.loads(rendered).encode()  # strict UTF-8: no lone surrogate is left


@given(st.text(max_size=MAX_FIELD_OCTETS // 4))
def test_text_within_the_cap_comes_back_unchanged(text: str) -> None:
    assert json.loads(json_string(text)) == text


@given(ANY_TEXT.map(lambda text: text * 300))
def test_long_text_is_cut_to_the_cap_at_a_character(text: str) -> None:
    decoded = json.loads(json_string(text))
    assert len(decoded.encode()) <= MAX_FIELD_OCTETS
    if decoded.endswith("...") and not text.startswith(decoded):
        assert text.encode("utf-8", "backslashreplace").decode().startswith(decoded[:-3])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a" * 256, "a" * 256),
        ("a" * 257, "a" * 253 + "..."),
        ("é" * 128, "é" * 128),
        ("é" * 129, "é" * 126 + "..."),
        ("al\udc80ice", "al\\udc80ice"),
        ("\x1b[2J\r\n\x7f\x9b", "\x1b[2J\r\n\x7f\x9b"),
    ],
)
def test_cap_and_surrogates(text: str, expected: str) -> None:
    assert json.loads(json_string(text)) == expected


@given(st.binary())
def test_any_octets_become_printable_ascii_json(octets: bytes) -> None:
    assert PRINTABLE_ASCII.fullmatch(json_octets(octets))
    json.loads(json_octets(octets))


def test_octets_beyond_ascii_are_written_as_hexadecimal() -> None:
    assert json.loads(json_octets(b"uid-\xff\x00")) == "uid-\\xff\x00"


def test_values_of_rare_records() -> None:
    value = {"a": [1, True, None, 1.5, float("nan"), b"x"], "key": Secret("hunter2"), "n": {"b": "\n"}}
    assert json.loads(json_value(value)) == {
        "a": [1, True, None, 1.5, None, "x"],
        "key": "Secret(****)",
        "n": {"b": "\n"},
    }
