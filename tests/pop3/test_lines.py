"""Lines out of octets: the same at any split, bounded, and never scanned twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.pop3.lines import LineSplitter, LineTooLong
from tests.pop3.helpers import chunks

LIMIT = 10
pieces = st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"a", b"bb", b"c" * 8, b"d" * 9, b"e" * 30]), max_size=30)


def cut(octets: list[bytes]) -> tuple[list[bytes | None], bytes]:
    """All lines, None for one that was too long, and what is left."""
    splitter = LineSplitter(LIMIT)
    found: list[bytes | None] = []
    for piece in octets:
        splitter.feed(piece)
        while True:
            try:
                line = splitter.next_line()
            except LineTooLong:
                found.append(None)
                continue
            if line is None:
                break
            found.append(line)
        assert len(splitter) < LIMIT, "what is kept is bounded"
    taken, rest = splitter.taken, splitter.take_rest()
    assert taken + len(rest) == sum(map(len, octets))
    return found, rest


def naive(octets: bytes) -> list[bytes | None]:
    *lines, last = octets.split(b"\n")
    found = [None if len(line) + 1 > LIMIT else line.removesuffix(b"\r") for line in lines]
    return [*found, None] if len(last) >= LIMIT else found


@given(pieces.map(b"".join), st.lists(st.integers(1, 12), max_size=60))
def test_lines_are_the_same_at_any_split(octets: bytes, sizes: list[int]) -> None:
    assert cut(chunks(octets, sizes)) == cut([octets])
    assert cut([octets])[0] == naive(octets)


def test_a_line_too_long_is_told_once_and_its_rest_dropped() -> None:
    splitter = LineSplitter(LIMIT)
    splitter.feed(b"x" * LIMIT)
    with pytest.raises(LineTooLong):
        splitter.next_line()
    for _ in range(3):
        splitter.feed(b"x" * 1000)
        assert (splitter.next_line(), len(splitter)) == (None, 0)
    splitter.feed(b"x\nnext\r\n")
    assert splitter.next_line() == b"next"
    assert splitter.taken == LIMIT + 3000 + 2 + 6


def test_the_rest_is_given_back_whole() -> None:
    splitter = LineSplitter(LIMIT)
    splitter.feed(memoryview(b"one\r\ntwo\r\nthr"))
    assert splitter.next_line() == b"one"
    assert splitter.take_rest() == b"two\r\nthr"
    assert (len(splitter), splitter.next_line(), splitter.take_rest()) == (0, None, b"")
