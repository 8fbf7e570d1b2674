"""Values with units: read, written, and refused with a cure."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.config.units import (
    format_duration,
    format_server,
    format_size,
    parse_address,
    parse_duration,
    parse_network,
    parse_server,
    parse_size,
    quote,
)
from popproxy.types import Address


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30.0),
        ("10m", 600.0),
        ("1.5h", 5400.0),
        ("2d", 172800.0),
        (" 5 s ", 5.0),
        ("0s", 0.0),
        ("0.3ms", 0.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(600.0, "10m"), (90.0, "90s"), (86400.0, "1d"), (0.05, "50ms"), (1.5, "1500ms"), (0.0, "0s"), (7200.0, "2h")],
)
def test_durations_are_written_the_shortest_way(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 366 * 86_400_000))
def test_a_duration_reads_back_as_it_was_written(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@given(st.integers(0, 1 << 49))
def test_a_size_reads_back_as_it_was_written(octets: int) -> None:
    assert parse_size(format_size(octets)) == octets


@pytest.mark.parametrize(("text", "octets"), [("512B", 512), ("64KiB", 65536), ("1.5MiB", 1572864), ("2GiB", 2 << 30)])
def test_sizes(text: str, octets: int) -> None:
    assert parse_size(text) == octets


@pytest.mark.parametrize(
    ("text", "cure"), [("64k", "write 64KiB"), ("1MB", "write 1MiB"), ("64", "for example 64KiB"), ("big", "64KiB")]
)
def test_a_wrong_size_is_refused_with_a_cure(text: str, cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        parse_size(text)


@pytest.mark.parametrize(
    "value", [True, None, [], "1e3s", "٣s", "5 fortnights", "nan", "infs", float("nan"), float("inf"), -1.0]
)
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="; write "):
        parse_duration(value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":110", Address("", 110)),
        ("127.0.0.1:110", Address("127.0.0.1", 110)),
        ("[::1]:110", Address("::1", 110)),
        ("[fe80::1%eth0]:110", Address("fe80::1%eth0", 110)),
        ("mail.example.com:995", Address("mail.example.com", 995)),
        ("localhost:0", Address("localhost", 0)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "a b:1", "::1:110", "[::1", "[::g]:1", "a:b", "a:1:2", "a:١", "1.2.3:110", "a:70000", "a/b:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="; write "):
        parse_address(text)


@pytest.mark.parametrize(
    "text", ["mail.example.com", "mail.example.com:110", "[2001:db8::1]", "[2001:db8::1]:110", "192.0.2.1"]
)
def test_a_server_reads_back_as_it_was_written(text: str) -> None:
    assert format_server(parse_server(text)) == text


def test_networks() -> None:
    assert parse_network("192.0.2.7") == ipaddress.ip_network("192.0.2.7/32")
    assert parse_network("2001:db8::/32") == ipaddress.ip_network("2001:db8::/32")


def test_a_quoted_value_is_short_and_on_one_line_and_without_a_password() -> None:
    assert quote("a\nb") == r"'a\nb'"
    assert len(quote("x" * 1000)) <= 62
    assert "secret" not in quote("pop3://joe:secret@mail.example.com")
