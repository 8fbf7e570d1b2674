"""One command of TRANSACTION, from the client's line to the end of its reply; and a quick way to read most."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from popproxy.pop3.commands import Command
from popproxy.pop3.states import RELAYED

_MULTILINE = frozenset({"RETR", "TOP", "CAPA"})
_LISTINGS = frozenset({"LIST", "UIDL"})  # multi-line without a message number
_PECULIAR = frozenset({"CAPA", "QUIT", "UIDL"})  # whose status line is not just handed on

PLAIN_LIMIT = len("RETR 123456789\r\n")
"""Octets of the longest line that `plain_kind` knows."""
# Commands as nearly all clients write them, which can go to the backend as they are: no cutting, parsing and
# serialising. Whatever else a client writes takes the long way to the same result.
_PLAIN = re.compile(
    rb"(?:(?P<bare>STAT|LIST|UIDL|NOOP|RSET|QUIT|CAPA)|(?P<verb>RETR|DELE|LIST|UIDL) (?P<number>[1-9][0-9]{0,8}))\r\n"
)
_VERBS = {verb.encode(): verb for verb in RELAYED}


class Kind(NamedTuple):
    """What one command asks for, the same for all who ask it."""

    verb: str
    number: int | None
    top_lines: int | None
    multiline: bool  # a good reply has a body
    peculiar: bool  # its status line is not just handed on


def kind_of(verb: str, number: int | None = None, top_lines: int | None = None) -> Kind:
    """The kind of a command that has been understood."""
    multiline = verb in _MULTILINE or (number is None and verb in _LISTINGS)
    return Kind(verb, number, top_lines, multiline, verb in _PECULIAR)


def parsed_kind(command: Command) -> Kind:
    """The kind of a parsed command of `RELAYED`."""
    number = command.numbers[0] if command.numbers else None
    return kind_of(command.verb, number, command.numbers[1] if command.verb == "TOP" else None)


@lru_cache(maxsize=1024)  # all clients ask for STAT and for message 1; short lines only, so that it stays small
def plain_kind(line: bytes) -> Kind | None:
    """The kind of a plain command line, line end included, of `PLAIN_LIMIT` octets at most; None for any other."""
    found = _PLAIN.fullmatch(line)
    if found is None:
        return None
    bare, verb, number = found.groups()
    return kind_of(_VERBS[bare]) if bare else kind_of(_VERBS[verb], int(number))


class Exchanged:
    """One command and what became of it. `octets` is the body as it went over the wire, without the final dot line.

    `line` goes to the backend; without it the proxy answers itself, with `answer` (None until its turn for LAST).
    """

    ok = False
    octets = 0
    restored = 0  # RSET only: how many messages it has unmarked
    reply = b""  # QUIT only: the backend's answer, kept back until the audit record is written

    def __init__(self, kind: Kind, line: bytes | None, answer: bytes | None = None) -> None:
        self.verb, self.number, self.top_lines, self.multiline, self.peculiar = kind
        self.line = line
        self.answer = answer

    def __repr__(self) -> str:
        return f"Exchanged({self.verb} {self.number} ok={self.ok} octets={self.octets})"
