"""APOP: timestamps that no collision attack can use, and the digest of RFC 1939."""

from __future__ import annotations

import re
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.sasl import apop
from popproxy.sasl.credentials import ApopCredential
from popproxy.sasl.mechanism import SaslError
from popproxy.types import Secret

STAMP = b"<1896.697170952@dbc.mtview.ca.us>"
DIGEST = b"c4c9334bac560ecc979e58001b3e22fb"


def test_the_example_of_rfc_1939() -> None:
    assert apop.digest(STAMP, Secret("tanstaaf")) == Secret(DIGEST)


def test_a_timestamp_is_a_msg_id() -> None:
    stamp = apop.make_timestamp(secrets.token_hex(16), "mail.example.org")
    assert re.fullmatch(rb"<[0-9a-f]{32}@mail\.example\.org>", stamp)
    assert apop.find_timestamp(b"+OK ready " + stamp) == stamp


def test_unique_parts_make_unique_timestamps() -> None:
    assert len({apop.make_timestamp(f"{n:032x}", "h") for n in range(10000)}) == 10000


@pytest.mark.parametrize("host", ["", "a b", "b\u00fccher.example", "a..b", "a>b", "a@b", "a\r\nb", "[::1", ".a"])
def test_a_host_that_cannot_stand_in_a_timestamp_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        apop.make_timestamp("0" * 32, host)


def test_an_address_literal_may_be_the_host() -> None:
    assert apop.make_timestamp("0", "[2001:db8::1]") == b"<0@[2001:db8::1]>"


@pytest.mark.parametrize(
    ("greeting", "stamp"),
    [
        (b"+OK POP3 server ready " + STAMP, STAMP),
        (STAMP + b" hello", STAMP),
        (b"+OK <not one> " + STAMP, STAMP),
        (b"+OK <<a@b>>", b"<a@b>"),
        (b"+OK <a@b> <c@d>", b"<a@b>"),
        (b"+OK", None),
        (b"+OK <>", None),
        (b"+OK <a>", None),
        (b"+OK <a@>", None),
        (b"+OK <@b>", None),
        (b"+OK <a b@c>", None),
        (b"+OK <a\0@c>", None),
        (b"+OK <\x80\x81@c>", None),
        (b"+OK <a@b\xff>", None),
        (b"+OK <a@b@c>", None),
        (b"+OK <.a@b>", None),
    ],
)
def test_a_timestamp_is_found_only_if_it_is_a_msg_id(greeting: bytes, stamp: bytes | None) -> None:
    assert apop.find_timestamp(greeting) == stamp


@given(st.lists(st.sampled_from([b"<", b"a", b".", b"@", b"[", b"]", b">", b"\xff"]), max_size=60).map(b"".join))
def test_a_found_timestamp_is_always_printable_and_bracketed(greeting: bytes) -> None:
    stamp = apop.find_timestamp(greeting)
    assert stamp is None or (re.fullmatch(rb"<[!-~]+@[!-~]+>", stamp) and stamp in greeting)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"mrose " + DIGEST, "mrose"),
        (b"mrose " + DIGEST.upper(), "mrose"),
        (b" mrose   " + DIGEST + b" ", "mrose"),
        (b"two words " + DIGEST, "two words"),
        (b"b\xc3\xbccher " + DIGEST, "b\u00fccher"),
    ],
)
def test_the_argument_of_apop(text: bytes, name: str) -> None:
    assert apop.parse(text, STAMP) == ApopCredential(name, STAMP, Secret(DIGEST))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"mrose",
        DIGEST,
        b" " + DIGEST,
        b"mrose " + DIGEST[:-1],
        b"mrose " + DIGEST + b"0",
        b"mrose " + b"g" * 32,
    ],
)
def test_a_malformed_argument_is_refused_without_an_echo(text: bytes) -> None:
    with pytest.raises(SaslError) as caught:
        apop.parse(text, STAMP)
    assert DIGEST.decode() not in str(caught.value)
