"""What an operator sees of a dialogue: no secret, no body, the right reply for each command, however it is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from popproxy.pop3.transcript import LINE_LIMIT, Said, Transcript

DIALOGUE = [
    (b"STAT\r\n", b"+OK 2 300\r\n", [("STAT", 6), ("+OK 2 300", 11)]),
    (b"uidl\r\n", b"+OK\r\n1 secret-id\r\n.\r\n", [("UIDL", 6), ("+OK", 5), ("", 13)]),
    (b"RETR 1\r\n", b"+OK 7\r\n..\r\n+OK\r\n.\r\n", [("RETR 1", 8), ("+OK 7", 7), ("", 9)]),
    (b"RETR 9\r\n", b"-ERR none\r\n", [("RETR 9", 8), ("-ERR none", 11)]),
    (b"TOP 1 0\r\n", b"+OK\r\n.\r\n", [("TOP 1 0", 9), ("+OK", 5), ("", 0)]),
    (b"PASS hunter2\r\n", b"-ERR already\r\n", [("PASS ****", 14), ("-ERR already", 14)]),
    (b"RETR hunter2\r\n", b"-ERR number\r\n", [("RETR ****", 14), ("-ERR number", 13)]),
    (b"hunter2\r\n", b"-ERR unknown\r\n", [("(not a command)", 9), ("-ERR unknown", 14)]),
    (b"\x1b[2J\r\n", b"+OK \x1b[2J\r\n", [("(not a command)", 6), ("+OK \ufffd[2J", 10)]),
    (b"NOOP\r\n", b"hunter2\r\n", [("NOOP", 6), ("(not a status line)", 9)]),
    (b"QUIT\r\n", b"+OK bye\r\n", [("QUIT", 6), ("+OK bye", 9)]),
]


@given(st.lists(st.integers(1, 30), min_size=1))
def test_every_reply_is_told_and_no_body_however_it_is_cut(cuts: list[int]) -> None:
    transcript = Transcript()
    for command, reply, expected in DIALOGUE:
        said = pieces(transcript.from_client, command, cuts) + pieces(transcript.to_client, reply, cuts)
        assert [(one.text, one.octets) for one in said] == expected
        assert [one.side for one in said] == ["client"] + ["server"] * (len(expected) - 1)


def test_pipelined_commands_keep_their_order() -> None:
    transcript = Transcript()
    transcript.from_client(b"".join(command for command, _, _ in DIALOGUE))
    said = transcript.to_client(b"".join(reply for _, reply, _ in DIALOGUE))
    assert [(one.text, one.octets) for one in said] == [pair for _, _, expected in DIALOGUE for pair in expected[1:]]


def test_what_never_ends_takes_no_memory() -> None:
    transcript = Transcript()
    for _ in range(100):
        transcript.from_client(b"x" * LINE_LIMIT)
    assert len(transcript._line) <= LINE_LIMIT
    assert transcript.from_client(b"\r\n") == [Said("client", "(not a command)", LINE_LIMIT + 2)]


def pieces(feed: object, octets: bytes, cuts: list[int]) -> list[Said]:
    said: list[Said] = []
    number = 0
    while octets:
        cut = cuts[number % len(cuts)]
        said += feed(octets[:cut])  # type: ignore[operator]
        octets, number = octets[cut:], number + 1
    return said
