"""A worker that strangers have taken over may say to its supervisor what it likes: that costs it bounded memory."""

from __future__ import annotations

import asyncio
import socket

import pytest

from popproxy.state import memory_store, workers
from popproxy.state.memory_store import MemoryStore
from popproxy.state.shared import Leak
from popproxy.state.store import GRANTED, Hold, Known, Take, Told
from popproxy.state.worker_messages import EXECUTE, JOIN, encode
from popproxy.state.workers import StateServer
from tests.state.sharing import LEAKS


def test_leases_notes_and_what_is_to_be_heard_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_store, "HELD", 10)
    monkeypatch.setattr(memory_store, "BACKLOG", 5000)
    store = MemoryStore()
    bad, good = store.join(LEAKS), store.join(LEAKS)
    bad.execute([Hold(f"user{number}", "maildrop", 1) for number in range(100)])
    assert len(store.leases) == 10
    assert good.execute([Take("alice", (("maildrop", 1, 0),))]) == [GRANTED]
    assert bad.execute([Take("alice", (("maildrop", 1, 0),))]) == [0]
    bad.exchange(Told(1, "", [], [("hold", f"user{number}", "x") for number in range(100)]))
    assert sum(map(len, store.notes.values())) == 10
    for number in range(1, 11):
        good.exchange(Told(number, "", [Known("user", f"user{number}-{one}", 1.0, 0.0) for one in range(500)], []))
    for _ in range(20):
        heard = bad.exchange(Told(1, "0", [], []))
        assert len(heard.changes) == 2000
        assert len(bad.backlog) <= 5000 + 5000


async def test_one_that_takes_no_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LONGEST", 50_000)
    server = StateServer()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    await server.attach(ours)
    loop = asyncio.get_running_loop()
    with theirs:
        await loop.sock_sendall(theirs, encode([1, JOIN, {"user": [0.001, 3600]}]))

        async def ask() -> None:
            while True:
                await loop.sock_sendall(theirs, encode([2, EXECUTE, [["marked", "x"]] * 1000]))

        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await asyncio.wait_for(ask(), 20)
    assert not server.store.members
    assert Leak(0.001, 3600) == server.store.counters["user"].leak
