"""Places at servers that can take only so many: nobody is overtaken, nothing is lost."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.backend.balancer import Member, Rules, State
from popproxy.backend.places import Place, Places
from popproxy.backend.waiting import Waiter, WaitingQueue
from popproxy.errors import BackendError
from popproxy.state.local import LocalState
from popproxy.state.shared import SharingStatus
from tests.session.rig import until


def member(limit: int = 1, label: str = "pop1:110") -> Member:
    return Member(label, Rules(), limit=limit)


class Shared(LocalState):
    """As if there were so many processes."""

    def __init__(self, members: int = 1) -> None:
        super().__init__({}, {})
        self.members = members

    def status(self) -> SharingStatus:
        return SharingStatus("workers", up=True, members=self.members)


def places(most: int = 10, seconds: float = 60.0, state: LocalState | None = None) -> Places:
    return Places("main", most, seconds, state or Shared())


async def one(where: Places, server: Member) -> Place:
    place = await where.take(server)
    assert place is not None
    return place


def test_users_have_their_turns_however_many_logins_one_of_them_has() -> None:
    queue, server = WaitingQueue(100), member()
    served: list[Waiter] = []
    waiters = [Waiter(user, [server], lambda _: None) for user in [*["greedy"] * 5, "alice", "bob", "alice"]]
    assert all(map(queue.join, waiters))
    while (waiter := queue.next(server)) is not None:
        served.append(waiter)
    assert served == [waiters[number] for number in (0, 5, 6, 1, 7, 2, 3, 4)]
    assert len(queue) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=30), st.randoms())
def test_nobody_gets_what_he_cannot_use_and_nobody_is_forgotten(
    logins: list[tuple[int, int]], rnd: random.Random
) -> None:
    servers = [member(label="a"), member(label="b")]
    queue, got, waiters = WaitingQueue(1000), dict[Waiter, Member](), list[Waiter]()
    for user, wants in logins:
        wanted = [server for bit, server in enumerate(servers) if wants >> bit & 1]
        waiters.append(Waiter(str(user), wanted, lambda _: None))
        assert queue.join(waiters[-1])
    left = {waiter for waiter in waiters if rnd.random() < 0.2}
    for waiter in left:
        queue.leave(waiter)
        queue.leave(waiter)
    while len(queue):
        wanted = queue.wanted()
        assert [queue.wants(server) for server in servers] == [server in wanted for server in servers]
        server = rnd.choice(servers)
        turn = queue.next(server)
        assert (turn is not None) == (server in wanted)
        if turn is not None:
            assert turn not in got
            got[turn] = server
    assert queue.wanted() == []
    assert got.keys() == set(waiters) - left
    assert all(server in waiter.wanted for waiter, server in got.items())


def test_too_many_are_sent_away() -> None:
    queue = WaitingQueue(1)
    assert queue.join(Waiter("alice", [], lambda _: None))
    assert not queue.join(Waiter("bob", [], lambda _: None))


# ---- places ----


async def test_a_place_that_is_given_back_goes_to_whose_turn_it_is() -> None:
    here, server = places(), member(2)
    first, second = await one(here, server), await one(here, server)
    assert await here.take(server) is None
    waiting = asyncio.create_task(here.enter("alice", [server]))
    await asyncio.sleep(0)
    first.release()
    assert await here.take(server) is None, "nobody overtakes"
    third = await waiting
    first.release()
    assert server.connections == 2, "given back once"
    second.release()
    third.release()
    assert server.connections == 0


async def test_who_gives_up_in_the_moment_of_his_turn_passes_it_on() -> None:
    here, server = places(), member()
    held = await one(here, server)
    tasks = [asyncio.create_task(here.enter(user, [server])) for user in ("alice", "bob", "carol")]
    await asyncio.sleep(0)
    tasks[0].cancel()  # before it is granted
    held.release()
    tasks[1].cancel()  # after it is granted, or to the one before
    got = await asyncio.gather(*tasks, return_exceptions=True)
    (place,) = (one for one in got if isinstance(one, Place))
    assert server.connections == 1
    place.release()
    assert (server.connections, len(here.queue)) == (0, 0)


async def test_nobody_waits_for_ever_nor_at_a_full_queue() -> None:
    here, server = places(1, 0.01), member(1)
    held = await one(here, server)
    with pytest.raises(BackendError, match="in time"):
        await here.enter("alice", [server])
    waiting = asyncio.create_task(here.enter("alice", [server]))
    await asyncio.sleep(0)
    with pytest.raises(BackendError, match="too many"):
        await here.enter("bob", [server])
    with pytest.raises(BackendError):
        await waiting
    held.release()
    assert server.connections == 0


async def test_drained_servers_let_nobody_in_until_they_take_logins_again() -> None:
    here, server = places(), member(1)
    held = await one(here, server)
    waiting = asyncio.create_task(here.enter("alice", [server]))
    await asyncio.sleep(0)
    server.order = State.DRAIN
    held.release()
    await asyncio.sleep(0)
    assert not waiting.done()
    assert server.connections == 0
    server.order = State.UP
    (await waiting).release()
    assert server.connections == 0


async def test_processes_that_share_a_server_keep_to_its_limit_together_and_keep_none_of_them_out() -> None:
    """Two of them, with many more logins than there are places, all the time."""
    state, at_once, most, served = Shared(2), 0, 0, [0, 0]
    sides = [(places(100, 60.0, state), member(3)) for _ in range(2)]

    async def visit(side: int) -> None:
        nonlocal at_once, most
        where, server = sides[side]
        place = await where.enter(f"user{side}", [server])
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        served[side] += 1
        at_once -= 1
        place.release()

    held = [await one(*sides[0]) for _ in range(3)]
    assert await sides[1][0].take(sides[1][1]) is None, "it knows of those of the other process"
    visits = [asyncio.create_task(visit(number % 2)) for number in range(24)]
    await until(lambda: all(len(where.queue) == 12 for where, _ in sides), "all to wait")
    for place in held:
        place.release()
    await asyncio.gather(*visits)
    assert (served, at_once) == ([12, 12], 0)
    assert 1 <= most <= 3
    assert [server.connections for _, server in sides] == [0, 0]
    assert not any(len(where.queue) for where, _ in sides)
    for where, server in sides:
        (await one(where, server)).release()


async def test_the_other_process_gets_its_turn_where_logins_never_cease_to_come() -> None:
    state, enough = Shared(2), asyncio.Event()
    (greedy, server), (modest, same) = [(places(100, 60.0, state), member(1)) for _ in range(2)]

    async def again_and_again() -> None:
        while not enough.is_set():
            place = await greedy.enter("greedy", [server])
            await asyncio.sleep(0)
            place.release()

    tasks = [asyncio.create_task(again_and_again()) for _ in range(4)]
    await until(lambda: len(greedy.queue), "somebody to wait")
    place = await modest.enter("modest", [same])
    enough.set()
    place.release()
    await asyncio.gather(*tasks)
