"""TRANSACTION and UPDATE: the tracker against a naive one, at any segmentation and interleaving, and its hard edges."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.pop3.exchange import CAPA_LIMIT, PENDING_LIMIT, Exchange
from popproxy.pop3.replies import REPLY_LINE_LIMIT
from popproxy.pop3.states import State
from popproxy.pop3.unique_ids import LISTING_LIMIT
from tests.pop3.helpers import chunks
from tests.pop3.reference import COMMANDS, QUIT, Account, Reply, Said, account, relay

BEFORE = {
    "TOP": (),
    "LOGIN-DELAY": ("60", "USER"),
    "USER": (),
    "STLS": (),
    "PIPELINING": (),
    "IMPLEMENTATION": ("popproxy",),
}
DECLARED = {"TOP": (), "UIDL": ()}
STALE = b"\r\n.\r\n+OK stale\r\n.\r\n"
"""What a reused read buffer may hold behind the octets just read."""

STATUSES = [
    b"+OK\r\n",
    b"+OK 3 1200\r\n",
    b"+OK 2 uid-two\r\n",
    b"+OK 3 uid-three extra\r\n",
    b"-ERR no such message\r\n",
    b"-ERR\r\n",
    b"+ok lower\r\n",
    b"-err Lower\n",
    b"+OK\n",
    b"+OK  two spaces\r\n",
    b"+OK\ttab\x07bell\x00\r\n",
    b"+OK a\rb\r\n",
    b"+OK \r\n",
    b"-ERR [IN-USE] x\r\n",
    b"-ERR [in-use]x\r\n",
    b"-ERR [AUTH] no\r\n",
    b"-ERR [AUTH/X] no\r\n",
    b"-ERR [AUTH] [AUTH] no\r\n",
    b"+OK [not a code] x\r\n",
    b"+OK [\r\n",
    b"-ERR [X-NEW/thing]\r\n",
    b"+OK " + b"x" * 506 + b"\r\n",
    b"+OK " + b"x" * 507 + b"\r\n",
    b"+OK " + b"\xe9" * 3000 + b"\n",
    b"-ERR [" + b"A" * 600 + b"] x\r\n",
    b"+OK \x01[AUTH] x\r\n",
]
TOKENS = [
    b"\r\n",
    b"\r\n",
    b"\r",
    b"\n",
    b".",
    b"..",
    b".\r",
    b".\n",
    b"\r\n..\r\n",
    b"\n.\n",
    b"\r.\r",
    b"\n.\r\n",
    b"\r\r\n.",
    b"\0",
    b"\xff",
    b"a",
    b"+OK\r\n",
    b"-ERR\r\n",
    b"1 uid-one\r\n",
    b"2 uid-two\r\n",
    b"\n1 fake\r\n",
    b"10 x\r\n",
    b"TOP\r\n",
    b"EXPIRE 30\r\n",
    b"SASL PLAIN\r\n",
    b"z" * 70,
]


def stuffed(text: bytes) -> bytes:
    """`text` as lines of a body: none a lone dot, the last one ended. Lines like ``.x`` stay, as of a sloppy server."""
    if text and not text.endswith(b"\r\n"):
        text += b"\r\n"
    return b"\r\n".join(b".." if line == b"." else line for line in text.split(b"\r\n"))


bodies = st.lists(st.sampled_from(TOKENS), max_size=14).map(b"".join).map(stuffed)
ok_first = st.sampled_from([b"+OK\r\n", b"+OK go\r\n"]) | st.sampled_from(STATUSES)
replies = st.builds(Reply, ok_first, bodies)
sessions = st.lists(st.tuples(st.sampled_from(COMMANDS), replies), max_size=20)


def new_exchange(*, pipelining: bool = True) -> Exchange:
    return Exchange(pipelining=pipelining, before=BEFORE, declared=DECLARED)


def give(exchange: Exchange, octets: bytes) -> bytes:
    """The octets from the backend, in a buffer that holds more; what the client gets of them."""
    shown = exchange.receive_from_backend(bytearray(octets + STALE), len(octets))
    return octets if shown is None else shown


def ask(exchange: Exchange, *lines: bytes) -> bytes:
    """Have the client send lines; what the backend gets of them."""
    exchange.receive_from_client(b"".join(line + b"\r\n" for line in lines))
    return exchange.commands_to_send(client_drained=True)


class Wire:
    """A relay of random temper: when it reads, how much, whom first, and when the client's socket has drained."""

    def __init__(self, said: list[Said], answers: Iterator[Reply], pipelining: bool, seed: int) -> None:
        self.exchange = new_exchange(pipelining=pipelining)
        self.result = Account()
        self._pipelining = pipelining
        self._answers = answers
        self._chance = random.Random(seed)
        self._client = b"".join(command.line for command in said)
        self._commands = [command for command in said if command.forward]
        self._backend = b""  # said by the backend and not yet read
        self._drained = True
        self._client_ended = False

    def run(self) -> Account:
        steps = [self._read_client, self._read_backend, self._send, self._answer, self._drain]
        idle = 0
        while idle < 40:
            progress = self._chance.choice(steps)()
            idle = 0 if progress else idle + 1
            self._collect()
        while any(step() for step in steps):  # nobody may have been left waiting by chance
            self._collect()
        self.result.deleted = self.exchange.deleted
        self.result.highest = self.exchange.highest
        return self.result

    def _size(self) -> int:
        return self._chance.choice([1, 2, 3, 4, 5, 6, 17, 300, 5000])

    def _read_client(self) -> bool:
        if self.exchange.backlogged or self._client_ended:
            return False
        size = self._size()
        self.exchange.receive_from_client(self._client[:size])
        self._client = self._client[size:]
        if not self._client:
            self._client_ended = True
            self.exchange.receive_client_eof()
        return True

    def _send(self) -> bool:
        octets = self.exchange.commands_to_send(client_drained=self._drained)
        lines = octets.splitlines(keepends=True)
        assert self._pipelining or len(lines) + bool(self._backend) <= 1, "one command at a time"
        for line in lines:
            if line == b"QUIT\r\n":
                assert self._drained, "R7: QUIT waits for the client's socket"
                assert not self._backend, "R7: QUIT waits for earlier replies"
                assert len(lines) == 1
            self._backend += next(self._answers).octets(self._commands.pop(0))
        self.result.to_backend += lines
        return bool(octets)

    def _read_backend(self) -> bool:
        if not self._backend:
            return False
        size = self._size()
        self._show(give(self.exchange, self._backend[:size]))
        self._backend = self._backend[size:]
        return True

    def _answer(self) -> bool:
        answers = self.exchange.local_answers()
        self._show(answers)
        return bool(answers)

    def _show(self, octets: bytes) -> None:
        if octets:
            self.result.to_client += octets
            self._drained = False

    def _drain(self) -> bool:
        drained, self._drained = self._drained, True
        return not drained

    def _collect(self) -> None:
        assert self.exchange.violation is None
        for event in self.exchange.events:
            self.result.events.append((event.verb, event.number, event.top_lines, event.ok, event.octets))
            if event.verb == "QUIT":
                self.result.quit_reply = event.reply
        self.exchange.events = []


@given(sessions, st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_a_naive_tracker_agrees(session: list[tuple[Said, Reply]], leaves: bool, pipelining: bool, seed: int) -> None:
    said = [command for command, _ in session] + ([QUIT] if leaves else [])
    answers = [reply for command, reply in session if command.forward] + [Reply(b"+OK bye\r\n")]
    wire = Wire(said, iter(answers), pipelining, seed)
    assert wire.run() == account(said, iter(answers), BEFORE, DECLARED)
    assert wire.exchange.client_finished
    assert wire.exchange.state is (State.CLOSED if leaves else State.TRANSACTION)


@given(bodies, st.lists(st.integers(1, 7), max_size=60))
def test_a_message_is_handed_on_octet_for_octet(body: bytes, sizes: list[int]) -> None:
    exchange = new_exchange()
    ask(exchange, b"RETR 1", b"NOOP")
    stream = b"+OK\r\n" + body + b".\r\n+OK\r\n"
    assert b"".join(give(exchange, piece) for piece in chunks(stream, sizes)) == stream
    assert [(event.verb, event.ok, event.octets) for event in exchange.events] == [
        ("RETR", True, len(body)),
        ("NOOP", True, 0),
    ]


def hear(pieces: list[bytes]) -> tuple[bytes, list[tuple[str, bool, int, bytes]], str | None, bool, int | None]:
    """What a client with some commands under way gets from a backend that says `pieces`, whatever they are."""
    exchange = new_exchange()
    ask(exchange, b"STAT", b"LIST", b"LAST", b"RETR 1", b"UIDL", b"XYZZY", b"CAPA", b"DELE 1", b"TOP 1 1", b"LIST 1")
    shown = b"".join(give(exchange, piece) for piece in pieces)
    events = [(event.verb, event.ok, event.octets, event.reply) for event in exchange.events]
    violation = exchange.violation.reason if exchange.violation else None
    cut = exchange.cut()
    return shown, events, violation, exchange.inside_body, cut.octets if cut else None


anything = st.lists(
    st.sampled_from([*STATUSES, *TOKENS, b"\r\n.\r\n", b".\r\n", b"+OK\r\n.\r\n", b"x" * 9000]) | st.binary(max_size=6),
    max_size=25,
).map(b"".join)


@given(anything, st.lists(st.integers(1, 30) | st.integers(1, 9000), max_size=60))
def test_any_octets_of_a_backend_at_any_split_give_the_same(octets: bytes, sizes: list[int]) -> None:
    assert hear(chunks(octets, sizes)) == hear([octets])


@given(st.lists(st.sampled_from([*STATUSES[:21], *TOKENS, b".\r\n", b"\r\n.\r\n"]), max_size=25).map(b"".join))
def test_octet_by_octet_gives_the_same(octets: bytes) -> None:
    assert hear([octets[i : i + 1] for i in range(len(octets))]) == hear([octets])


@given(
    st.lists(
        st.sampled_from([c.line for c in COMMANDS] + [b"QUIT\r\n", b"QUIT", b"\0\n"]) | st.binary(max_size=9),
        max_size=30,
    ),
    st.lists(st.integers(1, 50), max_size=50),
)
def test_any_octets_of_a_client_at_any_split_give_the_same_commands(lines: list[bytes], sizes: list[int]) -> None:
    def commands(pieces: list[bytes]) -> tuple[bytes, bytes, list[str]]:
        exchange = new_exchange()
        sent = answers = b""
        for piece in pieces:
            exchange.receive_from_client(piece)
            sent += exchange.commands_to_send(client_drained=True)
            answers += exchange.local_answers()
        for _ in range(len(pieces) + 40):
            sent += exchange.commands_to_send(client_drained=True)
            answers += exchange.local_answers()
            while exchange.awaiting:
                answers += give(exchange, b"-ERR\r\n")
        return sent, answers.replace(b"-ERR\r\n", b""), [event.verb for event in exchange.events]

    octets = b"".join(lines)
    assert commands(chunks(octets, sizes)) == commands([octets])
    assert b"QUIT" not in commands([octets])[0].replace(b"\nQUIT\r\n", b"").removeprefix(b"QUIT\r\n")


# ---- QUIT ----


def test_quit_waits_for_replies_and_for_the_clients_socket() -> None:
    exchange = new_exchange()
    assert ask(exchange, b"DELE 1", b"RETR 2", b"QUIT", b"NOOP") == b"DELE 1\r\nRETR 2\r\n"
    assert exchange.quit_waiting
    give(exchange, b"+OK\r\n+OK\r\nmail\r\n.\r")
    assert exchange.commands_to_send(client_drained=True) == b""
    give(exchange, b"\n")
    states = [exchange.state]
    assert exchange.commands_to_send(client_drained=False) == b""
    assert exchange.commands_to_send(client_drained=True) == b"QUIT\r\n"
    assert [*states, exchange.state] == [State.TRANSACTION, State.UPDATE]
    assert exchange.commands_to_send(client_drained=True) == b""


def test_quit_waits_for_our_own_answers_as_well() -> None:
    exchange = new_exchange()
    assert ask(exchange, b"LAST", b"QUIT") == b""
    assert exchange.local_answers() == b"+OK 0\r\n"
    assert exchange.commands_to_send(client_drained=False) == b""
    assert exchange.commands_to_send(client_drained=True) == b"QUIT\r\n"


@pytest.mark.parametrize("answer", [b"+OK bye\r\n", b"-ERR some deleted messages not removed\r\n"])
def test_the_answer_to_quit_is_kept_back(answer: bytes) -> None:
    exchange = new_exchange()
    ask(exchange, b"DELE 1")
    give(exchange, b"+OK\r\n")
    ask(exchange, b"QUIT")
    assert give(exchange, answer) == b""
    event = exchange.events[-1]
    assert (event.verb, event.ok, event.reply) == ("QUIT", answer.startswith(b"+"), answer)
    assert exchange.state is State.CLOSED
    assert exchange.deleted == {1: None}
    assert give(exchange, b"+OK more\r\n") == b""
    assert exchange.violation is not None


@pytest.mark.parametrize(
    "octets", [b"QUIT", b"QUIT\r", b" QUIT\r\n", b"QUIT\0\r\n", b"QUIT QUIT\r\n", b"NOOP\rQUIT\r\n"]
)
def test_what_is_no_whole_quit_is_none(octets: bytes) -> None:
    exchange = new_exchange()
    exchange.receive_from_client(octets)
    exchange.receive_client_eof()
    assert exchange.commands_to_send(client_drained=True) == b""
    assert not exchange.quit_waiting
    exchange.local_answers()
    assert exchange.client_finished
    assert all(event.verb != "QUIT" for event in exchange.events)


def test_commands_pipelined_beyond_the_limit_are_not_lost_with_the_clients_end() -> None:
    exchange = new_exchange()
    many = PENDING_LIMIT * 2 + 10
    exchange.receive_from_client(b"NOOP\r\n" * many + b"QUIT\r\n")
    exchange.receive_client_eof()
    sent = []
    while not exchange.client_finished:
        sent.append(exchange.commands_to_send(client_drained=True))
        assert exchange.backlogged or exchange.quit_waiting or b"".join(sent).count(b"\n") >= many
        give(exchange, b"+OK\r\n" * sent[-1].count(b"\n"))
    assert b"".join(sent) == b"NOOP\r\n" * many + b"QUIT\r\n"
    assert len(exchange.events) == many + 1


# ---- a backend that goes wrong ----


@pytest.mark.parametrize(
    ("said", "shown", "reason"),
    [
        (b"* OK\r\n", b"", "garbage"),
        (b"\r\n", b"", "garbage"),
        (b"+OKAY\r\n", b"", "garbage"),
        (b"+OK 1 2\r\n250 hi\r\n", b"+OK 1 2\r\n", "garbage"),
        (b"+OK" + b"x" * REPLY_LINE_LIMIT, b"", "oversize"),
        (b"+OK 1 2\r\n-ERR" + b"x" * REPLY_LINE_LIMIT + b"\r\n", b"+OK 1 2\r\n", "oversize"),
        (b"+OK 1 2\r\n+OK\r\na\r\n.\r\n+OK\r\n", b"+OK 1 2\r\n+OK\r\na\r\n.\r\n", "unsolicited"),
        (b"+OK 1 2\r\n+OK\r\na\r\n.\r\n.\r\n", b"+OK 1 2\r\n+OK\r\na\r\n.\r\n", "unsolicited"),
        (b"+OK 1 2\r\n-ERR gone\r\n\0", b"+OK 1 2\r\n-ERR gone\r\n", "unsolicited"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100000])
def test_a_backend_that_breaks_the_protocol_is_noticed_where_it_does(
    said: bytes, shown: bytes, reason: str, size: int
) -> None:
    exchange = new_exchange()
    ask(exchange, b"STAT", b"RETR 1")
    assert b"".join(give(exchange, said[at : at + size]) for at in range(0, len(said), size)) == shown
    assert exchange.violation is not None
    assert exchange.violation.reason == reason
    assert not exchange.inside_body


def test_octets_before_any_command_are_unsolicited() -> None:
    exchange = new_exchange()
    assert give(exchange, b"+OK") == b""
    assert exchange.violation is not None
    assert exchange.violation.reason == "unsolicited"


@pytest.mark.parametrize("size", [1000, 100000])
def test_an_endless_capa_is_noticed(size: int) -> None:
    exchange = new_exchange()
    ask(exchange, b"CAPA")
    stream = b"+OK\r\n" + b"X-TAG\r\n" * CAPA_LIMIT
    assert not any(give(exchange, stream[at : at + size]) for at in range(0, len(stream), size))
    assert exchange.violation is not None
    assert exchange.cut() is None, "nothing of it has been shown, so the client can be told"


def test_a_cut_message_is_told_with_what_came_of_it() -> None:
    exchange = new_exchange()
    ask(exchange, b"RETR 7")
    assert exchange.cut() is None
    give(exchange, b"+O")
    assert exchange.cut() is None
    give(exchange, b"K\r\nline\r\n.")
    cut = exchange.cut()
    assert cut is not None
    assert (cut.verb, cut.number, cut.octets) == ("RETR", 7, len(b"line\r\n."))


def test_a_body_is_handed_on_without_being_copied() -> None:
    exchange = new_exchange()
    ask(exchange, b"RETR 1", b"STAT")
    buffer = bytearray(b"+OK\r\nmail\r\n")
    assert exchange.receive_from_backend(buffer, len(buffer)) is None
    assert exchange.receive_from_backend(bytearray(65536), 65536) is None
    assert exchange.receive_from_backend(bytearray(b"\r\n.\r\n+OK 1 2\r\n"), 14) is None
    buffer.extend(b"x")  # nothing holds on to the read buffer


# ---- bounds ----


def test_what_is_pipelined_ahead_is_bounded() -> None:
    exchange = new_exchange(pipelining=False)
    exchange.receive_from_client(b"NOOP\r\n" * (PENDING_LIMIT - 1))
    paused = [exchange.backlogged]
    exchange.receive_from_client(b"NOOP\r\n" * 2)
    paused.append(exchange.backlogged)
    for _ in range(2):
        exchange.commands_to_send(client_drained=True)
        give(exchange, b"+OK\r\n")
    exchange.commands_to_send(client_drained=True)
    assert [*paused, exchange.backlogged] == [False, True, False]


def test_memory_is_bounded_whatever_the_backend_says() -> None:
    exchange = new_exchange()
    ask(exchange, b"UIDL")
    chunk = bytearray(b"".join(b"%d %s\r\n" % (n, b"u" * 50) for n in range(1000)))
    tracemalloc.start()
    give(exchange, b"+OK\r\n")
    for _ in range(200):
        exchange.receive_from_backend(chunk, len(chunk))
    give(exchange, b".\r\n")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert exchange.events[0].octets == 200 * len(chunk)
    assert peak < 4 * LISTING_LIMIT


def test_marking_and_unmarking_does_not_grow() -> None:
    exchange = new_exchange()
    ask(exchange, b"UIDL 1")
    give(exchange, b"+OK 1 abc\r\n")
    tracemalloc.start()
    before = 0
    for turn in range(800):
        ask(exchange, b"DELE 1", b"RSET", b"UIDL 1", b"LAST", b"XYZZY")
        give(exchange, b"+OK\r\n+OK\r\n+OK 1 abc\r\n")
        exchange.events = []
        if turn == 100:
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 4096


# ---- unique-ids ----


def test_unique_ids_are_known_from_either_form_of_uidl() -> None:
    exchange = new_exchange()
    ask(exchange, b"UIDL", b"UIDL 3", b"DELE 1", b"DELE 3", b"DELE 11", b"DELE 2")
    give(exchange, b"+OK\r\n1 one\r\n11  eleven \r\n.\r\n+OK 3 three\r\n" + b"+OK\r\n" * 4)
    assert exchange.deleted == {1: b"one", 3: b"three", 11: b"eleven", 2: None}


def test_half_a_unique_id_is_never_taken_for_a_whole_one() -> None:
    exchange = new_exchange()
    ask(exchange, b"UIDL")
    lines = [b"%d %s\r\n" % (n, b"u" * 60 + b"%d" % n) for n in range(1, 6000)]
    give(exchange, b"+OK\r\n" + b"".join(lines) + b".\r\n")
    known = {n: exchange.unique_id(n) for n in (*range(1, 6000, 37), *range(3700, 4000), 5999)}
    assert known[1] == b"u" * 60 + b"1"
    assert known[5999] is None
    assert all(uid in (None, b"u" * 60 + b"%d" % n) for n, uid in known.items())


def test_without_tls_words_of_the_backend_its_login_methods_stay_hidden() -> None:
    exchange = new_exchange()
    ask(exchange, b"CAPA")
    shown = give(
        exchange,
        b"+OK\r\nSASL PLAIN\r\nSTLS\r\nIMPLEMENTATION secret 1.0\r\nUIDL\r\nEXPIRE 30\r\nLANG\r\nUTF8\r\n.\r\n",
    )
    assert shown.split(b"\r\n")[1:-2] == [
        b"TOP",
        b"LOGIN-DELAY 60 USER",
        b"USER",
        b"PIPELINING",
        b"UIDL",
        b"EXPIRE 30",
        b"IMPLEMENTATION popproxy",
    ]


def test_last_is_told_in_its_turn() -> None:
    exchange = new_exchange()
    ask(exchange, b"RETR 3", b"LAST", b"RSET", b"LAST")
    assert exchange.local_answers() == b""
    assert give(exchange, b"+OK\r\n.\r\n+OK\r\n") == b"+OK\r\n.\r\n+OK 3\r\n+OK\r\n+OK 0\r\n"


def test_a_pool_declared_is_believed_where_the_backend_knows_no_capa() -> None:
    exchange = new_exchange()
    ask(exchange, relay("CAPA", "CAPA").line.strip())
    assert b"\r\nUIDL\r\n" in give(exchange, b"-ERR unknown command\r\n")
    assert exchange.events[0].ok
