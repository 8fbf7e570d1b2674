"""Long messages moved inside the kernel: complete, counted, and no harm done by a server that lies about sizes."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from popproxy.net.splice import Pipe
from tests.session.rig import Peer, Rig, Transcript, running

SIZE = 5 << 20


def body(size: int, seed: int = 1) -> bytes:
    """Octets of a message on the wire, without the final dot line."""
    chance = random.Random(seed)
    lines = bytearray()
    while len(lines) < size:
        lines += chance.choice((b"..", b"a.", b"\0", b"\r.\n.\r", b"x" * 900, b"")) + b"\r\n"
    return bytes(lines)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Octets of each move inside the kernel."""
    counts: list[int] = []
    move = Pipe.move

    def counted(self: Pipe, source: int, sink: int, octets: int) -> tuple[int, bytes]:
        moved, rest = move(self, source, sink, octets)
        counts.append(moved)
        return moved, rest

    monkeypatch.setattr(Pipe, "move", counted)
    return counts


@asynccontextmanager
async def splicing(directory: Path, **sections: Any) -> AsyncIterator[Rig]:
    async with running(directory, pool={"splice": True}, **sections) as rig:
        yield rig


async def fetch(client: Peer, backend: Peer, status: bytes, message: bytes) -> bytes:
    """RETR 1 through the proxy; returns what the client has got of it."""
    await Transcript(client, backend).play("C: RETR 1\nB: RETR 1")
    sending = asyncio.create_task(backend.send(status + b"\r\n" + message + b".\r\n", seconds=60))
    got = await client.take(len(status) + 2 + len(message) + 3)
    await sending
    return got[len(status) + 2 :]


@pytest.mark.parametrize(
    "announced",
    [SIZE, SIZE // 3, SIZE * 3, 0, 10**11],
    ids=["right", "too small", "too great", "nothing", "absurd"],
)
async def test_message_is_whole_whatever_its_size_is_said_to_be(
    tmp_path: Path, moves: list[int], announced: int
) -> None:
    async with splicing(tmp_path) as rig:
        client, backend = await rig.logged_in()
        message = body(SIZE)
        got = await fetch(client, backend, b"+OK %d octets" % announced, message)
        assert got == message + b".\r\n"
        await Transcript(client, backend).play("C: NOOP\nB: NOOP\nR: +OK\nS: +OK\nC: QUIT\nB: QUIT\nR: +OK\nS: +OK")
        await rig.ends("logout")
        (record,) = rig.audit("retr")
        assert record["pop3.octets"] == len(message)
        assert record["pop3.complete"] is True
        (end,) = rig.audit("session_end")
        assert end["pop3.bytes_out"] > len(message)
        assert (sum(moves) > SIZE // 8) == bool(announced)


async def test_server_dies_in_the_middle(tmp_path: Path, moves: list[int]) -> None:
    async with splicing(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await Transcript(client, backend).play("C: DELE 2\nB: DELE 2\nR: +OK\nS: +OK\nC: RETR 1\nB: RETR 1")
        await backend.send(b"+OK %d octets\r\n" % SIZE + body(SIZE // 2), seconds=30)
        backend.close()
        got = await client.rest()
        assert got.startswith(b"+OK ")
        assert not got.endswith(b"\r\n.\r\n")
        assert b"-ERR" not in got
        await rig.ends("backend_lost")
        (record,) = rig.audit("retr")
        assert record["pop3.complete"] is False
        assert record["pop3.octets"] == len(got) - len(b"+OK %d octets\r\n" % SIZE)
        assert sum(moves)


async def test_client_goes_in_the_middle(tmp_path: Path, moves: list[int]) -> None:
    async with splicing(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await Transcript(client, backend).play("C: RETR 1\nB: RETR 1")
        sending = asyncio.create_task(backend.send(b"+OK %d octets\r\n" % (8 * SIZE) + body(8 * SIZE), seconds=30))
        await client.take(SIZE)
        client.reset()
        with pytest.raises((ConnectionError, BrokenPipeError)):
            await sending
        await rig.ends("client_lost")
        (record,) = rig.audit("retr")
        assert record["pop3.complete"] is False
        assert sum(moves)


async def test_slow_client_gets_it_all(tmp_path: Path, moves: list[int]) -> None:
    async with splicing(tmp_path) as rig:
        client, backend = await rig.logged_in(receive=32768)
        message = body(SIZE)
        await Transcript(client, backend).play("C: RETR 1\nB: RETR 1")
        sending = asyncio.create_task(backend.send(b"+OK %d octets\r\n" % SIZE + message + b".\r\n", seconds=60))
        got = bytearray()
        while len(got) < len(message) // 4:
            got += await client.take(50_000)
            await asyncio.sleep(0.002)
        got += await client.take(len(b"+OK %d octets\r\n" % SIZE) + len(message) + 3 - len(got))
        await sending
        assert got.endswith(message + b".\r\n")
        assert sum(moves)


async def test_commands_sent_meanwhile_are_answered_in_turn(tmp_path: Path, moves: list[int]) -> None:
    async with splicing(tmp_path) as rig:
        client, backend = await rig.logged_in(capa="TOP UIDL PIPELINING")
        message = body(SIZE)
        await Transcript(client, backend).play("C: RETR 1\nB: RETR 1")
        sending = asyncio.create_task(backend.send(b"+OK %d octets\r\n" % SIZE + message[:-1], seconds=60))
        got = bytearray(await client.take(SIZE // 2))
        await client.send("NOOP\r\n")
        await sending
        await backend.expect("NOOP")
        await backend.send(message[-1:] + b".\r\n+OK noop\r\n")
        expected = b"+OK %d octets\r\n" % SIZE + message + b".\r\n+OK noop\r\n"
        got += await client.take(len(expected) - len(got))
        assert bytes(got) == expected
        assert sum(moves)


async def test_nothing_is_spliced_under_tls_or_where_it_is_not_asked_for(tmp_path: Path, moves: list[int]) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        message = body(SIZE)
        assert await fetch(client, backend, b"+OK %d octets" % SIZE, message) == message + b".\r\n"
    assert moves == []


def test_pipe_is_empty_after_a_sink_that_takes_nothing() -> None:
    pipe = Pipe()
    ours, theirs = socket.socketpair()
    full, unread = socket.socketpair()
    for sock in (ours, theirs, full, unread):
        sock.setblocking(False)
    try:
        while True:
            try:
                full.send(b"x" * 65536)
            except BlockingIOError:
                break
        theirs.send(b"y" * 5000)
        assert pipe.move(ours.fileno(), full.fileno(), 1 << 20) == (5000, b"y" * 5000)
        with pytest.raises(BlockingIOError):
            pipe.move(ours.fileno(), full.fileno(), 1 << 20)
    finally:
        pipe.close()
        for sock in (ours, theirs, full, unread):
            sock.close()
