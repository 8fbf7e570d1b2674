"""What workers share, handed over from one program of their supervisor to the next."""

from __future__ import annotations

import asyncio
import json
import os
import socket

from popproxy.state.shared import Leak
from popproxy.state.store import GRANTED, Counted, Hold, Known, Make, Mark, Marked, Take, Told
from popproxy.state.workers import StateServer, SupervisorStore

LEAKS = {"address": Leak(1 / 3600, 3600.0)}


async def test_the_next_program_knows_all_and_workers_notice_nothing() -> None:
    old, new = StateServer(), StateServer()
    stores, kept = [], []
    for _ in range(3):
        ours, theirs = socket.socketpair()
        await old.attach(ours)
        stores.append(SupervisorStore(theirs))
        await stores[-1].open(LEAKS)
    first, second, third = stores
    secret = first.secret
    news = Told(1, "", [Counted("address", "192.0.2.1", 5)], [("order", "alice", "hold")])
    heard = await second.exchange(Told(1, "", [], []))
    await first.exchange(news)
    await first.execute([Take("alice", (("sessions", 2, 0),)), Mark("known\0alice", 60.0), Make("ticket\0a", 60.0)])
    await third.execute([Hold("alice", "sessions", 1)])

    old.pause()
    late = asyncio.ensure_future(second.execute([Marked("known\0alice"), Make("ticket\0a", 60.0)]))
    await asyncio.sleep(0)
    await third.close()

    def keep(descriptor: int) -> int:
        kept.append(os.dup(descriptor))  # as if it had been inherited
        return kept[-1]

    told = json.loads(json.dumps(old.hand_over(keep)))
    await new.take_over(told, lambda number: socket.socket(fileno=number))
    assert await late == [1, 0]
    assert first.secret == secret == new.store.secret
    await asyncio.wait_for(_closed(new, 2), 10)
    refused, granted = await second.execute(
        [Take("alice", (("sessions", 1, 0),)), Take("alice", (("sessions", 2, 0),))]
    )
    assert (refused, granted) == (0, GRANTED), "the lease of one that has ended is free, that of the other is not"
    again = await second.exchange(Told(2, heard.cursor, [], []))
    assert [change for _, change in again.changes] == [Counted("address", "192.0.2.1", 5)]
    assert again.notes == {"order": {"alice": "hold"}}
    repeated = await first.exchange(news)  # its answer was lost
    assert not repeated.wanted
    ours, theirs = socket.socketpair()
    await new.attach(ours)
    newcomer = SupervisorStore(theirs)
    await newcomer.open(LEAKS)
    (change,) = [change for _, change in (await newcomer.exchange(Told(1, "", [], []))).changes]
    assert isinstance(change, Known)
    assert 4.9 < change.value <= 5.0
    for store in (first, second, newcomer):
        await store.close()
    old.close()
    new.close()


async def _closed(server: StateServer, members: int) -> None:
    """Waits until there are so many members."""
    while len(server.store.members) != members:
        await asyncio.sleep(0.01)
