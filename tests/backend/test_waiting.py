"""Places at servers that can take only so many: nobody is overtaken, nothing is lost."""

from __future__ import annotations

import asyncio
import random
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.backend.balancer import Member, Rules, State
from popproxy.backend.places import Place, Places
from popproxy.backend.waiting import Waiter, WaitingQueue
from popproxy.errors import BackendError


def member(limit: int = 1, label: str = "pop1:110") -> Member:
    return Member(label, Rules(), limit=limit)


def test_users_have_their_turns_however_many_logins_one_of_them_has() -> None:
    queue, server, served = WaitingQueue(100), member(), []
    for user in [*["greedy"] * 5, "alice", "bob", "alice"]:
        number = len(queue)
        assert queue.join(Waiter(user, [server], lambda _, who=(user, number): served.append(who)))  # type: ignore[misc]
    while queue.free(server):
        pass
    assert served == [
        ("greedy", 0), ("alice", 5), ("bob", 6), ("greedy", 1), ("alice", 7),
        *[("greedy", number) for number in (2, 3, 4)],
    ]  # fmt: skip
    assert len(queue) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=30), st.randoms())
def test_nobody_gets_what_he_cannot_use_and_nobody_is_forgotten(
    logins: list[tuple[int, int]], rnd: random.Random
) -> None:
    servers = [member(label="a"), member(label="b")]
    queue, got, waiters = WaitingQueue(1000), dict[int, Member](), list[Waiter]()
    for number, (user, wants) in enumerate(logins):
        wanted = [server for bit, server in enumerate(servers) if wants >> bit & 1]
        waiters.append(Waiter(str(user), wanted, partial(got.__setitem__, number)))
        assert queue.join(waiters[-1])
    left = {number for number in range(len(logins)) if rnd.random() < 0.2}
    for number in left:
        queue.leave(waiters[number])
        queue.leave(waiters[number])
    while any(queue.free(server) for server in rnd.sample(servers, 2)):
        pass
    assert len(queue) == 0
    assert got.keys() == set(range(len(logins))) - left
    assert all(got[number] in waiters[number].wanted for number in got)


def test_too_many_are_sent_away() -> None:
    queue = WaitingQueue(1)
    assert queue.join(Waiter("alice", [], lambda _: None))
    assert not queue.join(Waiter("bob", [], lambda _: None))


# ---- places ----


async def test_a_place_that_is_given_back_goes_to_whose_turn_it_is() -> None:
    places, server = Places(10, 10.0), member(2)
    first, second = places.take(server), places.take(server)
    assert first is not None
    assert second is not None
    assert places.take(server) is None
    waiting = asyncio.create_task(places.wait("alice", [server]))
    await asyncio.sleep(0)
    first.release()
    assert places.take(server) is None, "nobody overtakes"
    third = await waiting
    first.release()
    assert server.connections == 2, "given back once"
    second.release()
    third.release()
    assert server.connections == 0


async def test_who_gives_up_in_the_moment_of_his_turn_passes_it_on() -> None:
    places, server = Places(10, 10.0), member()
    held = places.take(server)
    assert held is not None
    tasks = [asyncio.create_task(places.wait(user, [server])) for user in ("alice", "bob", "carol")]
    await asyncio.sleep(0)
    tasks[0].cancel()  # before it is granted
    held.release()
    tasks[1].cancel() if tasks[1].done() is False and server.connections == 1 else None  # after it is granted
    got = await asyncio.gather(*tasks, return_exceptions=True)
    place = next(one for one in got if isinstance(one, Place))
    assert server.connections == 1
    place.release()
    assert (server.connections, len(places.queue)) == (0, 0)


async def test_nobody_waits_for_ever_nor_at_a_full_queue() -> None:
    places, server = Places(1, 0.01), member(1)
    held = places.take(server)
    assert held is not None
    with pytest.raises(BackendError, match="in time"):
        await places.wait("alice", [server])
    waiting = asyncio.create_task(places.wait("alice", [server]))
    await asyncio.sleep(0)
    with pytest.raises(BackendError, match="too many"):
        await places.wait("bob", [server])
    with pytest.raises(BackendError):
        await waiting
    held.release()
    assert server.connections == 0


async def test_drained_servers_let_nobody_in_until_they_take_logins_again() -> None:
    places, server = Places(10, 10.0), member(1)
    held = places.take(server)
    assert held is not None
    waiting = asyncio.create_task(places.wait("alice", [server]))
    await asyncio.sleep(0)
    server.order = State.DRAIN
    held.release()
    await asyncio.sleep(0)
    assert not waiting.done()
    assert server.connections == 0
    server.order = State.UP
    places.offer(server)
    (await waiting).release()
    assert server.connections == 0
