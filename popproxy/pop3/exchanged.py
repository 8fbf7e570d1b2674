"""One command of TRANSACTION, from the client's line to the end of its reply; and a quick way to read most."""

from __future__ import annotations

import re

from popproxy.pop3.states import RELAYED

MULTILINE = frozenset({"RETR", "TOP", "CAPA"})
LISTINGS = frozenset({"LIST", "UIDL"})  # multi-line without a message number
PECULIAR = frozenset({"CAPA", "QUIT", "UIDL"})  # whose status line is not just handed on

# Commands as nearly all clients write them, which can go to the backend as they are: one match instead of cutting,
# parsing and serialising. Whatever else a client writes takes the long way to the same result.
_PLAIN = re.compile(
    rb"(?:(?P<bare>STAT|LIST|UIDL|NOOP|RSET|QUIT|CAPA)|(?P<verb>RETR|DELE|LIST|UIDL) (?P<number>[1-9][0-9]{0,8}))\r\n"
)
_VERBS = {verb.encode(): verb for verb in RELAYED}


class Exchanged:
    """One command and what became of it. `octets` is the body as it went over the wire, without the final dot line."""

    __slots__ = (
        "answer", "line", "multiline", "number", "octets", "ok", "peculiar", "reply", "restored", "top_lines", "verb",
    )  # fmt: skip

    def __init__(
        self, verb: str, number: int | None, top_lines: int | None, line: bytes | None, answer: bytes | None
    ) -> None:
        self.verb = verb
        self.number = number
        self.top_lines = top_lines
        self.line = line  # for the backend; None if the proxy answers itself
        self.answer = answer  # the proxy's own answer; None until its turn for LAST
        self.multiline = verb in MULTILINE or (number is None and verb in LISTINGS)
        self.peculiar = verb in PECULIAR  # its status line is not just handed on
        self.ok = False
        self.octets = 0
        self.restored = 0  # RSET only: how many messages it has unmarked
        self.reply = b""  # QUIT only: the backend's answer, kept back until the audit record is written

    def __repr__(self) -> str:
        return f"Exchanged({self.verb} {self.number} ok={self.ok} octets={self.octets})"


def read_plain(data: bytes, at: int) -> tuple[Exchanged, int] | None:
    """The plain command at ``data[at:]`` and where it ends, or None if there is none: it must be parsed then."""
    found = _PLAIN.match(data, at)
    if found is None:
        return None
    bare, verb, number = found.groups()
    if bare is None:
        return Exchanged(_VERBS[verb], int(number), None, found[0], None), found.end()
    return Exchanged(_VERBS[bare], None, None, found[0], None), found.end()
