"""The one dialogue that every case plays, and what a server in good health answers to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.peers.messages import multiline

MESSAGES = [
    b"Subject: one\r\n\r\nshort\r\n",
    b"Subject: two\r\n\r\n.a line that begins with a dot\r\n..\r\n"
    + b"fifty octets of a line that says nothing at all..\r\n" * 80,
    b"Subject: three\r\n\r\n\r\n.\r\n",
]  # fmt: skip
BIG = b"Subject: big\r\n\r\n" + (b"x" * 998 + b"\r\n") * 24_000
"""More than all buffers between two ends of loopback take."""

CAPABILITIES = (b"TOP", b"UIDL", b"USER")
TRANSACTION = (
    "STAT", "UIDL", "LIST", "LIST 2", "TOP 2 3", "RETR 2", "DELE 1", "CAPA", "NOOP", "RSET", "DELE 2", "QUIT",
)  # fmt: skip
"""After the login. DELE 1 is taken back, DELE 2 is what QUIT makes final."""
COMMITTED = frozenset({2})
MULTILINE = frozenset({"UIDL", "LIST", "CAPA"})


def is_multiline(line: str) -> bool:
    """Whether +OK to this command is the beginning of more."""
    return line in MULTILINE or line.startswith(("RETR", "TOP"))


@dataclass
class Maildrop:
    """An open maildrop of `messages`."""

    messages: list[bytes] = field(default_factory=lambda: MESSAGES)
    deleted: set[int] = field(default_factory=set)

    def answer(self, line: str) -> bytes:
        """The whole reply to a command in TRANSACTION, as a server in good health gives it."""
        verb, *words = line.split(" ")
        left = {number: text for number, text in enumerate(self.messages, 1) if number not in self.deleted}
        match verb:
            case "STAT":
                return b"+OK %d %d\r\n" % (len(left), sum(map(len, left.values())))
            case "NOOP" | "QUIT":
                return b"+OK\r\n"
            case "RSET":
                self.deleted.clear()
                return b"+OK\r\n"
            case "CAPA":
                return capabilities()
            case "UIDL" if not words:
                return b"+OK\r\n" + b"".join(b"%d unique-%d\r\n" % (number, number) for number in left) + b".\r\n"
            case "LIST" if not words:
                return (
                    b"+OK\r\n"
                    + b"".join(b"%d %d\r\n" % (number, len(text)) for number, text in left.items())
                    + b".\r\n"
                )
        number = int(words[0]) if words and words[0].isdigit() else 0
        if number not in left:
            return b"-ERR no such message\r\n"
        match verb:
            case "LIST":
                return b"+OK %d %d\r\n" % (number, len(left[number]))
            case "RETR":
                return b"+OK %d octets\r\n" % len(left[number]) + multiline(left[number])
            case "TOP":
                head, _, body = left[number].partition(b"\r\n\r\n")
                lines = body.split(b"\r\n")[: int(words[1])]
                return b"+OK\r\n" + multiline(head + b"\r\n\r\n" + b"".join(line + b"\r\n" for line in lines))
            case "DELE":
                self.deleted.add(number)
                return b"+OK\r\n"
        return b"-ERR what?\r\n"


def capabilities() -> bytes:
    """The reply to CAPA."""
    return b"+OK\r\n" + b"".join(name + b"\r\n" for name in CAPABILITIES) + b".\r\n"


def healthy_replies() -> dict[str, bytes]:
    """What the client gets to each line of the dialogue when nothing goes wrong; CAPA is popproxy's own matter."""
    maildrop = Maildrop()
    return {line: maildrop.answer(line) for line in TRANSACTION}
