"""A dialogue after the login for the eyes of an operator: lines without secrets, bodies as a number of octets.

It reads what goes over the client's connection in both directions, and shows nothing but well-formed commands of
TRANSACTION and status lines. Whatever else a client says may be a password typed into the wrong place.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

from popproxy.pop3.commands import BadCommand, keyword_of, parse, serialise
from popproxy.pop3.exchanged import parsed_kind
from popproxy.pop3.states import RELAYED

LINE_LIMIT = 1024
"""Octets kept of a line that has not ended."""
MASK = "****"
_END = b"\r\n.\r\n"


class Said(NamedTuple):
    """One line, or one body (`text` is empty then). `octets` as on the wire; of a body without the final dot line."""

    side: Literal["client", "server"]
    text: str
    octets: int


class Transcript:
    """Both directions of one session, each fed as it goes by. Begin it where no reply is awaited."""

    def __init__(self) -> None:
        self._line = bytearray()  # of the client, unfinished
        self._status = bytearray()  # of the server, likewise
        self._awaited: deque[bool] = deque()  # replies to come: does a good one have a body?
        self._body = -1  # octets so far of the body that goes by; -1 outside of one
        self._tail = b""  # the last octets of it

    def restart(self) -> None:
        """No reply is awaited now, whatever was thought."""
        self._awaited.clear()
        self._status.clear()
        self._body = -1

    def from_client(self, data: bytes) -> list[Said]:
        """Octets of commands."""
        said = []
        lines = (bytes(self._line) + data).split(b"\n")
        self._line = bytearray(lines.pop()[-LINE_LIMIT:])
        for line in lines:
            text, multiline = _shown_command(line.removesuffix(b"\r"))
            self._awaited.append(multiline)
            said.append(Said("client", text, len(line) + 1))
        return said

    def to_client(self, data: bytes) -> list[Said]:
        """Octets of replies."""
        said: list[Said] = []
        while data:
            if self._body >= 0:
                data = self._in_body(data, said)
                continue
            line, end, data = data.partition(b"\n")
            self._status += line[:LINE_LIMIT]
            if end:
                status, self._status = bytes(self._status).removesuffix(b"\r"), bytearray()
                said.append(Said("server", _shown_status(status), len(status) + 2))
                if (self._awaited.popleft() if self._awaited else False) and status.startswith(b"+OK"):
                    self._body, self._tail = 0, b"\r\n"
        return said

    def _in_body(self, data: bytes, said: list[Said]) -> bytes:
        """Count the body; returns what comes behind its end."""
        octets = self._tail + data
        found = octets.find(_END)
        if found < 0:
            self._body += len(data)
            self._tail = octets[-4:]
            return b""
        taken = found + len(_END) - len(self._tail)
        said.append(Said("server", "", self._body + taken - len(b".\r\n")))
        self._body = -1
        return data[taken:]


def _shown_command(line: bytes) -> tuple[str, bool]:
    verb = keyword_of(line)
    if verb == "OTHER":
        return "(not a command)", False
    try:
        command = parse(line)
    except BadCommand:
        return f"{verb} {MASK}", False
    if verb not in RELAYED:
        return f"{verb} {MASK}" if command.text else verb, False
    return serialise(command).decode().rstrip(), parsed_kind(command).multiline


def _shown_status(line: bytes) -> str:
    if not line.startswith((b"+OK", b"-ERR")):
        return "(not a status line)"
    return "".join(c if c.isprintable() else "\ufffd" for c in line.decode("utf-8", "replace"))
