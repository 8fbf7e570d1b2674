"""What a client calls itself never becomes a part of a filter or of a distinguished name."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.directories.placeholders import can_fill, escape_dn, escape_filter, fields_of, fill, may_be_principal

FILTER = "(&(objectClass=person)(mail={user}))"


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("*", "\\2a"),
        ("*)(uid=*", "\\2a\\29\\28uid=\\2a"),
        ("a\\b", "a\\5cb"),
        ("a\0b", "a\\00b"),
        ("żółw", "żółw"),
        ("Parens R Us (for all your parenthetical needs)", "Parens R Us \\28for all your parenthetical needs\\29"),
    ],
)
def test_filter_values_as_in_rfc_4515(name: str, escaped: str) -> None:
    assert escape_filter(name) == escaped


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("Smith, John", "Smith\\, John"),
        ("a+b", "a\\+b"),
        ("#1", "\\#1"),
        (" a ", "\\20a\\20"),
        (" ", "\\20"),
        ('"<>;=\\', '\\"\\<\\>\\;\\=\\\\'),
        ("a\rb", "a\\0db"),
        ("Лукьянов", "Лукьянов"),
    ],
)
def test_values_of_distinguished_names_as_in_rfc_4514(name: str, escaped: str) -> None:
    assert escape_dn(name) == escaped


@given(st.text(alphabet=string.printable + "ü\0", min_size=1, max_size=30))
def test_a_filter_keeps_its_shape(user: str) -> None:
    filled = fill(FILTER, user, escape_filter)
    assert filled.count("(") == FILTER.count("(")
    assert filled.count(")") == FILTER.count(")")
    assert "*" not in filled


def test_what_was_put_in_is_not_looked_at_again() -> None:
    assert fill("uid={local},o={domain}", "{domain}@{user}", str) == "uid={domain},o={user}"


def test_the_domain_is_what_stands_behind_the_last_at() -> None:
    assert fields_of("a@b@c") == {"user": "a@b@c", "local": "a@b", "domain": "c"}
    assert fields_of("a") == {"user": "a", "local": "a", "domain": ""}


def test_a_name_without_what_the_template_asks_for() -> None:
    assert not can_fill("dc={domain}", "alice")
    assert not can_fill("uid={local}", "@example.com")
    assert can_fill("uid={local}", "alice")


@pytest.mark.parametrize("name", ["cn=admin,dc=example,dc=com", "CORP\\alice", "alice bob", "*", "a;b", "<SID=1>"])
def test_no_other_kind_of_name_passes_for_a_logon_name(name: str) -> None:
    assert not may_be_principal(name)


@pytest.mark.parametrize("name", ["alice", "alice@example.com", "o'brien", "müller", "a.b-c_d"])
def test_logon_names(name: str) -> None:
    assert may_be_principal(name)
