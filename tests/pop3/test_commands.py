"""The command table: what is taken, what is refused, and that only understood octets are written to a backend."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.pop3.commands import COMMANDS, BadCommand, Command, keyword_of, parse, serialise
from popproxy.pop3.states import IN_AUTHORIZATION, NEXT, RELAYED, State


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"STAT", Command("STAT")),
        (b"quit  ", Command("QUIT")),
        (b"LIST", Command("LIST")),
        (b"LIST ", Command("LIST")),
        (b"list 5", Command("LIST", (5,))),
        (b"RETR  0012 ", Command("RETR", (12,))),
        (b"RETR 2147483647", Command("RETR", (2147483647,))),
        (b"TOP 1 0", Command("TOP", (1, 0))),
        (b"USER  a b ", Command("USER", text=b" a b ")),
        (b"PASS ", Command("PASS", text=b"")),
        (b"AUTH", Command("AUTH")),
        (b"AUTH PLAIN =", Command("AUTH", text=b"PLAIN =")),
    ],
)
def test_commands_are_understood(line: bytes, command: Command) -> None:
    assert parse(line) == command


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b"X",
        b" STAT",
        b"STAT\t",
        b"STAT\r",
        b"STAT\0",
        b"STAT 1",
        b"RETR",
        b"RETR 0",
        b"RETR 1 2",
        b"RETR 1\r2",
        b"RETR 1\t",
        b"RETR +1",
        b"RETR -1",
        b"RETR 1.0",
        b"RETR 0x1",
        b"RETR 1_0",
        b"RETR \xb2",
        b"RETR \xd9\xa1",
        b"TOP 1",
        b"TOP 0 1",
        b"TOP 1 -1",
        b"TOP 1 2 3",
        b"DELE 2147483648",
        b"DELE 4294967297",
        b"DELE 99999999999999999999",
        b"TOP 1 4294967296",
        b"USER",
        b"PASS",
        b"XTND a",
        b"XTND XMIT",
        b"UTF8",
        b"LANG",
        b"LAST 1",
        b"NOOP x",
    ],
)
def test_other_lines_are_refused_without_an_echo(line: bytes) -> None:
    with pytest.raises(BadCommand) as caught:
        parse(line)
    assert line == b"" or caught.value.text.encode() != line


@given(
    st.binary(max_size=30)
    | st.sampled_from(sorted(COMMANDS)).flatmap(lambda v: st.binary(max_size=12).map(lambda b: v.encode() + b))
)
def test_only_understood_octets_reach_a_backend(line: bytes) -> None:
    line = line.replace(b"\n", b"")
    assert keyword_of(line) in {*COMMANDS, "OTHER"}
    try:
        command = parse(line)
    except BadCommand:
        return
    assert keyword_of(line) == command.verb
    if command.verb in RELAYED:
        assert re.fullmatch(rb"[A-Z]{3,4}(?: [0-9]{1,10}){0,2}\r\n", serialise(command))


def test_every_verb_has_its_place() -> None:
    assert IN_AUTHORIZATION | RELAYED | {"LAST"} == set(COMMANDS)
    assert all(State.CLOSED in NEXT[state] for state in State if state is not State.CLOSED)
