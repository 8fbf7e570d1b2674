"""CAPA: what may be promised before the login, and what is true after it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.pop3.capabilities import Capabilities, after_login, common, parse, parse_body, render

Caps = dict[str, tuple[str, ...]]


@pytest.mark.parametrize(
    ("pools", "shared"),
    [
        ([], {}),
        ([{"TOP": (), "UIDL": ()}], {"TOP": (), "UIDL": ()}),
        ([{"TOP": (), "UIDL": ()}, {"UIDL": ()}], {"UIDL": ()}),
        ([{"TOP": ()}, {}], {}),
        ([{"SASL": ("PLAIN",), "STLS": (), "PIPELINING": (), "UTF8": (), "LANG": (), "IMPLEMENTATION": ("x",)}], {}),
        ([{"LOGIN-DELAY": ("60",)}], {"LOGIN-DELAY": ("60",)}),
        ([{"LOGIN-DELAY": ("60",)}, {"LOGIN-DELAY": ("60",)}], {"LOGIN-DELAY": ("60",)}),
        ([{"LOGIN-DELAY": ("60",)}, {"LOGIN-DELAY": ("900",)}], {"LOGIN-DELAY": ("900", "USER")}),
        ([{"LOGIN-DELAY": ("60",)}, {"LOGIN-DELAY": ("60", "USER")}], {"LOGIN-DELAY": ("60", "USER")}),
        ([{"LOGIN-DELAY": ("60",)}, {"LOGIN-DELAY": ("x",)}], {"LOGIN-DELAY": ("60", "USER")}),
        ([{"LOGIN-DELAY": ("y",)}, {"LOGIN-DELAY": ("x",)}], {}),
        ([{"LOGIN-DELAY": ()}, {"LOGIN-DELAY": ("²",)}], {}),
        ([{"EXPIRE": ("30",)}, {"EXPIRE": ("60",)}], {"EXPIRE": ("30", "USER")}),
        ([{"EXPIRE": ("30",)}, {"EXPIRE": ("NEVER",)}], {"EXPIRE": ("30", "USER")}),
        ([{"EXPIRE": ("0",)}, {"EXPIRE": ("NEVER",)}], {"EXPIRE": ("0", "USER")}),
        ([{"EXPIRE": ("NEVER",)}, {"EXPIRE": ("never",)}], {"EXPIRE": ("NEVER", "USER")}),
        ([{"EXPIRE": ("NEVER",)}, {"EXPIRE": ("NEVER",)}], {"EXPIRE": ("NEVER",)}),
        ([{"EXPIRE": ("30",)}, {"EXPIRE": ("soon",)}], {}),
        ([{"EXPIRE": ("x",)}, {"EXPIRE": ("soon",)}], {}),
        ([{"EXPIRE": ()}, {"EXPIRE": ("60",)}], {}),
        ([{"EXPIRE": ("30",)}, {}], {}),
    ],
)
def test_before_the_login_only_what_every_backend_can_do(pools: list[Capabilities], shared: Caps) -> None:
    assert common(pools) == shared


BEFORE: Caps = {"EXPIRE": ("30", "USER"), "USER": (), "SASL": ("PLAIN",), "STLS": (), "IMPLEMENTATION": ("popproxy",)}


@pytest.mark.parametrize(
    ("backend", "added"),
    [
        (None, {}),
        ({}, {}),
        ({"TOP": (), "UIDL": ()}, {"TOP": (), "UIDL": ()}),
        ({"EXPIRE": ("90",)}, {"EXPIRE": ("90",)}),
        ({"EXPIRE": ()}, {}),
        ({"LOGIN-DELAY": ()}, {}),
        ({"SASL": ("CRAM-MD5",), "STLS": (), "IMPLEMENTATION": ("x",), "UTF8": (), "X-SECRET": ()}, {}),
    ],
)
def test_after_the_login_what_this_backend_can_do(backend: Capabilities | None, added: Caps) -> None:
    merged = after_login(BEFORE, backend)
    assert merged == {"EXPIRE": ("30", "USER"), "USER": (), "SASL": ("PLAIN",), "IMPLEMENTATION": ("popproxy",)} | added
    assert list(merged)[-1] == "IMPLEMENTATION"


@pytest.mark.parametrize(
    ("ours", "theirs", "shown"),
    [
        (("90",), ("30",), ("90",)),
        (("90",), ("120",), ("120",)),
        (("90", "USER"), ("30",), ("30",)),
        ((), ("30",), ("30",)),
    ],
)
def test_the_longer_delay_counts(ours: tuple[str, ...], theirs: tuple[str, ...], shown: tuple[str, ...]) -> None:
    before: Caps = {"LOGIN-DELAY": ours} if ours else {}
    assert after_login(before, {"LOGIN-DELAY": theirs})["LOGIN-DELAY"] == shown


tags = st.sampled_from(["TOP", "UIDL", "EXPIRE", "LOGIN-DELAY", "SASL", "STLS", "LANG", "USER", "PIPELINING"])
capabilities = st.dictionaries(
    tags, st.lists(st.sampled_from(["0", "30", "NEVER", "USER", "x"]), max_size=2).map(tuple)
)


@given(st.lists(capabilities, min_size=1, max_size=3), st.integers(0, 2))
def test_never_less_than_before(pools: list[Caps], which: int) -> None:
    before = common(pools) | {"STLS": (), "USER": (), "IMPLEMENTATION": ("popproxy",)}
    after = after_login(before, pools[which % len(pools)])
    assert set(before) - {"STLS"} <= set(after)
    assert "STLS" not in after
    assert parse_body(render(after).partition(b"\r\n")[2]) == after


def test_a_list_is_read_however_it_is_written() -> None:
    assert parse_body(b"top\r\nSASL  PLAIN LOGIN\nUIDL\r\n\xff\xfe\r\n\x1b[2J\r\n\r\n.\r\n") == {
        "TOP": (),
        "SASL": ("PLAIN", "LOGIN"),
        "UIDL": (),
    }
    assert parse([b"EXPIRE 30", "TOP", " ", b"x" * 511]) == {"EXPIRE": ("30",), "TOP": ()}
