"""The command table and parser: RFC 1939, 2449, 2595, 5034, what was removed for old clients (LAST, RPOP), and XCLIENT.

Commands are never handed on as they came. They are parsed to a `Command` and written anew by `serialise`, so that no
octet of the client's line that has not been understood reaches a backend.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from popproxy.errors import RemoteProtocolError

COMMAND_LIMIT = 512
"""Longest command line in octets, line end included.

RFC 2449 section 4 asks for 255; PASS of real clients needs more.
"""
NUMBER_LIMIT = 2**31 - 1
"""Greatest number handed on.

Beyond it many servers wrap around, and would touch another message than the one recorded.
"""


class BadCommand(RemoteProtocolError):
    """A line that is no valid command. `text` may be shown to the client: it echoes nothing of the line."""

    def __init__(self, text: str) -> None:
        super().__init__(text, reason="bad_command")
        self.text = text


class Takes(Enum):
    """What may follow a keyword."""

    NOTHING = "no argument"
    MAYBE_NUMBER = "at most a message number"
    NUMBER = "a message number"
    NUMBER_AND_LINES = "a message number and a number of lines"
    TEXT = "an argument"
    MAYBE_TEXT = "at most an argument"


COMMANDS: dict[str, Takes] = {
    "APOP": Takes.TEXT,
    "AUTH": Takes.MAYBE_TEXT,
    "CAPA": Takes.NOTHING,
    "DELE": Takes.NUMBER,
    "LAST": Takes.NOTHING,
    "LIST": Takes.MAYBE_NUMBER,
    "NOOP": Takes.NOTHING,
    "PASS": Takes.TEXT,
    "QUIT": Takes.NOTHING,
    "RETR": Takes.NUMBER,
    "RPOP": Takes.TEXT,
    "RSET": Takes.NOTHING,
    "STAT": Takes.NOTHING,
    "STLS": Takes.NOTHING,
    "TOP": Takes.NUMBER_AND_LINES,
    "UIDL": Takes.MAYBE_NUMBER,
    "USER": Takes.TEXT,
    "XCLIENT": Takes.TEXT,
}
_BY_KEYWORD = {keyword.encode(): (keyword, takes) for keyword, takes in COMMANDS.items()}
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_NUMBER = re.compile(rb"[0-9]{1,10}")


class Command(NamedTuple):
    """One command: `numbers` for those that take numbers, `text` (the rest of the line) for the others."""

    verb: str
    numbers: tuple[int, ...] = ()
    text: bytes = b""


def keyword_of(line: bytes) -> str:
    """The verb of a line for metrics and log: one of `COMMANDS` or ``OTHER``, never the client's own text."""
    known = _BY_KEYWORD.get(line.partition(b" ")[0].upper())
    return known[0] if known else "OTHER"


def parse(line: bytes) -> Command:
    """A line (without its line end) as a command. Raises BadCommand (RFC 1939 section 3: answered by -ERR)."""
    keyword, space, rest = line.partition(b" ")
    known = _BY_KEYWORD.get(keyword) or _BY_KEYWORD.get(keyword.upper())
    if known is None:
        raise BadCommand("unknown command")
    verb, takes = known
    if takes is Takes.NOTHING:
        if rest.strip(b" "):
            raise BadCommand(f"{verb} takes no argument")
        return Command(verb)
    if takes is Takes.TEXT or takes is Takes.MAYBE_TEXT:
        # what may stand in names and secrets is for the authentication to say: it must answer [AUTH], not us
        if takes is Takes.TEXT and not space:
            raise BadCommand(f"{verb} needs an argument")
        return Command(verb, text=rest)
    if _CONTROL.search(rest):
        raise BadCommand("control character in the command")
    return Command(verb, _numbers(verb, takes, rest.split()))


def _numbers(verb: str, takes: Takes, words: list[bytes]) -> tuple[int, ...]:
    count = len(words)
    wrong = count > 1 if takes is Takes.MAYBE_NUMBER else count != (2 if takes is Takes.NUMBER_AND_LINES else 1)
    if wrong or not all(_NUMBER.fullmatch(word) for word in words):
        raise BadCommand(f"{verb} takes {takes.value}")
    numbers = tuple(map(int, words))
    if any(number > NUMBER_LIMIT for number in numbers):
        raise BadCommand("no such message")
    if numbers and numbers[0] == 0:
        raise BadCommand("message numbers start at 1")
    return numbers


def serialise(command: Command) -> bytes:
    """The command as one line for a backend, CRLF included."""
    words = [command.verb, *map(str, command.numbers)]
    line = " ".join(words).encode()
    return line + b" " + command.text + b"\r\n" if command.text else line + b"\r\n"
