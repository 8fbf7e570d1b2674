"""A tracker of TRANSACTION that is obviously right and slow: whole commands, whole replies, one after the other.

It never sees a chunk. Commands carry what they mean (`COMMANDS`), replies come ready cut into status line and body, so
there is nothing to find and nothing to get wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from popproxy.pop3.capabilities import Capabilities, after_login, parse, render


@dataclass(frozen=True)
class Said:
    """A line of the client and what it means: `forward` to the backend, or an `answer` of the proxy (None for LAST)."""

    line: bytes
    verb: str
    number: int | None = None
    top_lines: int | None = None
    forward: bytes | None = None
    answer: bytes | None = None

    @property
    def multiline(self) -> bool:
        return self.verb in ("RETR", "TOP", "CAPA") or (self.verb in ("LIST", "UIDL") and self.number is None)


@dataclass(frozen=True)
class Reply:
    """What the backend says: the status line, and the lines of the body, stuffed, without the final dot."""

    status: bytes
    body: bytes = b""

    @property
    def ok(self) -> bool:
        return self.status.upper().startswith(b"+OK")

    def octets(self, said: Said) -> bytes:
        return self.status + (self.body + b".\r\n" if self.ok and said.multiline else b"")


@dataclass
class Account:
    """What must have happened by the end."""

    to_client: bytes = b""
    to_backend: list[bytes] = field(default_factory=list)
    events: list[tuple[str, int | None, int | None, bool, int]] = field(default_factory=list)
    deleted: dict[int, bytes | None] = field(default_factory=dict)
    highest: int = 0
    quit_reply: bytes | None = None


def relay(word: str, verb: str, number: int | None = None, top: int | None = None, end: bytes = b"\r\n") -> Said:
    parts = [verb, *(str(n) for n in (number, top) if n is not None)]
    return Said(word.encode() + end, verb, number, top, " ".join(parts).encode() + b"\r\n")


def refused(line: bytes, verb: str, text: str) -> Said:
    return Said(line, verb, answer=f"-ERR {text}\r\n".encode())


COMMANDS = [
    relay("STAT", "STAT"),
    relay("stat ", "STAT", end=b"\n"),
    relay("LIST", "LIST"),
    relay("LIST 2", "LIST", 2),
    relay("UIDL", "UIDL"),
    relay("uidl 3", "UIDL", 3),
    relay("UIDL 2", "UIDL", 2),
    relay("RETR 1", "RETR", 1),
    relay("Retr  002 ", "RETR", 2),
    relay("RETR 2147483647", "RETR", 2147483647),
    relay("TOP 1 0", "TOP", 1, 0),
    relay("TOP 3 99999999", "TOP", 3, 99999999),
    relay("DELE 1", "DELE", 1),
    relay("DELE 2", "DELE", 2),
    relay("DELE 3", "DELE", 3),
    relay("RSET", "RSET"),
    relay("NOOP", "NOOP"),
    relay("CAPA", "CAPA"),
    Said(b"LAST\r\n", "LAST"),
    refused(b"XYZZY\r\n", "OTHER", "unknown command"),
    refused(b"\r\n", "OTHER", "unknown command"),
    refused(b"RETR\r\n", "RETR", "RETR takes a message number"),
    refused(b"DELE 0\r\n", "DELE", "message numbers start at 1"),
    refused(b"DELE 4294967297\r\n", "DELE", "no such message"),
    refused(b"TOP 1\r\n", "TOP", "TOP takes a message number and a number of lines"),
    refused(b"DELE 1 2\n", "DELE", "DELE takes a message number"),
    refused(b"DELE 1\r2\r\n", "DELE", "control character in the command"),
    refused(b"DELE -1\r\n", "DELE", "DELE takes a message number"),
    refused(b"LIST x\r\n", "LIST", "LIST takes at most a message number"),
    refused(b"USER alice\r\n", "USER", "already logged in"),
    refused(b"PASS  secret\r\n", "PASS", "already logged in"),
    refused(b"AUTH\r\n", "AUTH", "already logged in"),
    refused(b"STLS\r\n", "STLS", "already logged in"),
    refused(b"QUIT x\r\n", "OTHER", "QUIT takes no argument"),
    refused(b"QUIT\r\r\n", "OTHER", "unknown command"),
    refused(b"x" * 511 + b"\r\n", "OTHER", "line too long"),
    refused(b"NOOP" + b" " * 2000 + b"\n", "OTHER", "line too long"),
]
QUIT = relay("QUIT", "QUIT")


def presentable(line: bytes) -> bytes:
    """A backend's status line as a client that trusts RESP-CODES may see it."""
    bare = line[:-2] if line.endswith(b"\r\n") else line[:-1]
    head = b"+OK" if bare[:1] == b"+" else b"-ERR"
    text = bare[len(head) :]
    plain = all(32 <= octet != 127 for octet in bare)
    spaced = text in (b"", b" ") or (text[:1] == b" " and text[1:2] not in (b" ", b"["))
    if bare.startswith(head) and plain and spaced and len(bare) <= 510:
        return bare + b"\r\n"
    text = text.lstrip(b" \t")
    code = re.match(rb"\[([!-.0-\\^-~]+(/[!-.0-\\^-~]+)*)\]", text)
    word = code[1].upper() if code and len(code[1]) <= 64 else b""
    if code:
        text = text[code.end() :]
    text = re.sub(rb"[\x00-\x1f\x7f]+", b" ", text).strip()
    if word and word.split(b"/")[0] != b"AUTH":
        text = b"[" + word + b"] " + text
    elif text[:1] == b"[":
        text = b"(" + text[1:].replace(b"]", b")", 1)
    return (head + b" " + text).rstrip()[:510] + b"\r\n"


def account(said: Sequence[Said], replies: Iterator[Reply], before: Capabilities, declared: Capabilities) -> Account:
    """Go through the session, one command and its reply at a time."""
    sums = Account()
    listing: list[bytes] = []
    single: dict[int, bytes] = {}

    def unique_id(number: int) -> bytes | None:
        if number in single:
            return single[number]
        mark = b"%d " % number
        return next((line[len(mark) :].strip()[:70] for line in listing if line.startswith(mark)), None)

    for command in said:
        if command.forward is None:
            sums.to_client += b"+OK %d\r\n" % sums.highest if command.answer is None else command.answer
            sums.events.append((command.verb, command.number, None, command.answer is None, 0))
            continue
        sums.to_backend.append(command.forward)
        reply = next(replies)
        ok, body = reply.ok, reply.body if reply.ok and command.multiline else b""
        if command.verb == "CAPA":
            own = parse(body.replace(b"\r\n", b"\n").split(b"\n")) if ok else declared
            sums.to_client += render(after_login(before, own))
            ok = True
        elif command.verb == "QUIT":
            sums.quit_reply = presentable(reply.status)
        else:
            sums.to_client += presentable(reply.status) + (body + b".\r\n" if reply.ok and command.multiline else b"")
        sums.events.append((command.verb, command.number, command.top_lines, ok, len(body)))
        number = command.number
        if not ok:
            continue
        if command.verb == "UIDL" and number is None:
            listing = body.split(b"\n")
        elif command.verb == "UIDL":
            words = re.sub(rb"\[[^\]]*\]", b"", reply.status)[3:].split()
            if len(words) >= 2 and words[0].isdigit():
                single[int(words[0])] = words[1]
        elif command.verb == "RSET":
            sums.deleted.clear()
            sums.highest = 0
        elif number is not None and command.verb in ("RETR", "DELE"):
            sums.highest = max(sums.highest, number)
            if command.verb == "DELE":
                sums.deleted[number] = unique_id(number)
        if command.verb == "QUIT":
            break
    return sums
