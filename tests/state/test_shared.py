"""What is shared, wherever it is kept: one suite for memory, for the workers of a host, and for Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from popproxy.state.mirrored import MirroredState
from popproxy.state.shared import Claim, Lease, SharedState
from tests.state.sharing import Memory, OverRedis, Sharing, Workers, until

KINDS: dict[str, Callable[[], Sharing]] = {
    "memory": Memory,
    "workers": Workers,
    "redis": lambda: OverRedis("node"),
    "sentinel": lambda: OverRedis("sentinel"),
    "cluster": lambda: OverRedis("cluster"),
}
REAL = [pytest.param(kind, marks=pytest.mark.real) for kind in ("redis", "sentinel", "cluster")]


@pytest.fixture(params=["memory", "workers", *REAL])
async def anywhere(request: pytest.FixtureRequest) -> AsyncIterator[Sharing]:
    """All kinds."""
    sharing = KINDS[request.param]()
    yield sharing
    await sharing.end()


@pytest.fixture(params=["workers", *REAL])
async def among(request: pytest.FixtureRequest) -> AsyncIterator[Sharing]:
    """Those that have several members."""
    sharing = KINDS[request.param]()
    yield sharing
    await sharing.end()


async def take(state: SharedState, owner: str = "alice", most: int = 2, address: str = "192.0.2.1") -> Lease:
    lease = await state.acquire(owner, [("", most), (address, most)])
    assert not isinstance(lease, str)
    return lease


async def full(state: SharedState, owner: str = "alice", most: int = 2) -> bool:
    """Has the owner all that he may have? Takes nothing."""
    lease = await state.acquire(owner, [("", most)])
    if isinstance(lease, str):
        return True
    lease.release()
    return False


def value(state: SharedState, key: str) -> float:
    level = state.level("address", key)
    return 0.0 if level is None else level.value


# ---- one process ----


async def test_what_is_counted_is_there_at_once(anywhere: Sharing) -> None:
    state = await anywhere.member()
    assert state.level("address", "a") is None
    for _ in range(3):
        state.add("address", "a")
    assert value(state, "a") == pytest.approx(3.0, abs=0.1)
    assert [key for key, _ in state.levels("address")] == ["a"]
    assert (state.tracked("address"), state.tracked("user")) == (1, 0)
    assert state.clear("address", "a")
    assert not state.clear("address", "a")
    assert state.level("address", "a") is None


async def test_marks_claims_and_notes(anywhere: Sharing) -> None:
    state = await anywhere.member()
    assert not await state.marked("known", "a")
    state.mark("known", "a")
    assert await state.marked("known", "a")
    assert await state.claim("ticket", "a", 1000) is Claim.FIRST
    assert await state.claim("ticket", "a", 1000) is Claim.REPEATED
    assert await state.claim("login", "a", 1000) is Claim.FIRST
    state.unclaim("ticket", "a")
    assert await state.claim("ticket", "a", 1000) is Claim.FIRST
    state.note("hold", "alice", "moving")
    state.note("hold", "bob", "moving")
    state.note("hold", "bob", None)
    assert dict(state.notes("hold")) == {"alice": "moving"}
    assert dict(state.notes("move")) == {}
    assert len(state.secret) == 32
    assert (state.status().up, state.status().members) == (True, 1)


async def test_leases_are_taken_together_or_not_at_all(anywhere: Sharing) -> None:
    state = await anywhere.member()
    first, second = await take(state, most=3), await take(state, most=3)
    assert await state.acquire("alice", [("", 3), ("192.0.2.1", 2)]) == "192.0.2.1"
    third = await take(state, most=3, address="192.0.2.2")  # the refused one has taken nothing
    assert await state.acquire("alice", [("", 3), ("192.0.2.3", 3)]) == ""
    assert not isinstance(await state.acquire("bob", [("", 3)]), str)
    first.release()
    first.release()
    fourth = await take(state, most=3)
    for lease in (second, third, fourth):
        lease.release()
    assert not await full(state, most=1)


async def test_many_at_once_get_no_more_than_there_are(anywhere: Sharing) -> None:
    states = [await anywhere.member()]
    if not isinstance(anywhere, Memory):
        states.append(await anywhere.member())
        await until(lambda: all(state.status().members == 2 for state in states))
    taken = await asyncio.gather(*(state.acquire("alice", [("", 7)]) for state in states for _ in range(20)))
    leases = [lease for lease in taken if not isinstance(lease, str)]
    assert len(leases) == 7
    leases[0].release()
    await until(lambda: gained(states[0]))


async def gained(state: SharedState) -> bool:
    return not isinstance(await state.acquire("alice", [("", 7)]), str)


# ---- several ----


async def test_what_one_counts_all_know(among: Sharing) -> None:
    one, other = await among.member(), await among.member()
    one.add("address", "a")
    one.add("address", "a")
    other.add("address", "a")
    await until(lambda: value(one, "a") > 2.9 and value(other, "a") > 2.9)
    one.clear("address", "a")
    one.add("address", "a")
    await until(lambda: value(other, "a") < 1.1)
    assert value(one, "a") == pytest.approx(1.0, abs=0.05)
    assert value(other, "a") == pytest.approx(1.0, abs=0.05)
    late = await among.member()
    await until(lambda: value(late, "a") > 0.9)
    assert value(late, "a") == pytest.approx(1.0, abs=0.05)


async def test_marks_claims_and_notes_are_everybodys(among: Sharing) -> None:
    one, other = await among.member(), await among.member()
    assert one.secret == other.secret
    one.mark("known", "a")
    await until(lambda: other.marked("known", "a"))
    assert await one.claim("ticket", "a", 1000) is Claim.FIRST
    assert await other.claim("ticket", "a", 1000) is Claim.REPEATED
    one.note("hold", "alice", "moving")
    await until(lambda: other.notes("hold") == {"alice": "moving"})
    other.note("hold", "alice", None)
    await until(lambda: not one.notes("hold"))


async def test_a_lease_holds_everywhere_until_it_is_given_back(among: Sharing) -> None:
    one, other = await among.member(), await among.member()
    await until(lambda: one.status().members == other.status().members == 2)
    first = await take(one)
    await take(other)
    assert await full(one)
    assert await full(other)
    first.release()
    await until(lambda: not_full(other))


async def not_full(state: SharedState) -> bool:
    return not await full(state)


async def test_who_gives_up_in_the_moment_of_the_answer_keeps_nothing(
    among: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await among.member()
    await among.member()
    assert isinstance(one, MirroredState)
    answered = one._acquired

    def and_gives_up(*arguments: Any) -> None:
        answered(*arguments)
        asking.cancel()

    await take(one, "bob")  # that there is another member is known
    monkeypatch.setattr(one, "_acquired", and_gives_up)
    asking = asyncio.create_task(take(one, most=1))
    with pytest.raises(asyncio.CancelledError):
        await asking
    monkeypatch.undo()
    await take(one, most=1)


async def test_what_a_process_held_is_free_when_it_ends(among: Sharing) -> None:
    one, other = await among.member(), await among.member()
    await until(lambda: one.status().members == other.status().members == 2)
    await take(one)
    await take(one)
    assert await full(other)
    await among.kill(one)
    await until(lambda: not_full(other))


async def test_who_was_alone_has_told_everything_when_another_comes(among: Sharing) -> None:
    one = await among.member()
    await take(one)
    await take(one)
    one.add("address", "a")
    other = await among.member()
    await until(lambda: full(other))
    await until(lambda: value(other, "a") > 0.9)


@pytest.mark.long
async def test_a_store_that_is_away_never_means_no_limit_and_forgets_nothing(among: Sharing) -> None:
    one, other = await among.member(), await among.member()
    await until(lambda: one.status().members == other.status().members == 2)
    held = [await take(one, most=4), await take(one, most=4)]
    one.add("address", "a")
    one.note("hold", "alice", "moving")
    await until(lambda: value(other, "a") > 0.9 and other.notes("hold"))
    await among.lose()
    # The first to ask notices; from then on each has its share: half of four.
    assert await one.acquire("alice", [("", 4)]) == ""
    await until(lambda: not one.status().up and not other.status().up)
    began = asyncio.get_running_loop().time()
    mine = await take(other, most=4)
    await take(other, most=4)
    assert await other.acquire("alice", [("", 4)]) == ""
    assert asyncio.get_running_loop().time() - began < 2  # what Redis may take: nobody waits for it again
    other.add("address", "a")
    assert value(other, "a") > 1.9
    assert value(one, "a") > 0.9
    assert await one.claim("ticket", "a", 1000) is Claim.FIRST_HERE
    assert await one.claim("ticket", "a", 1000) is Claim.REPEATED
    other.mark("known", "b")
    assert await other.marked("known", "b")
    assert not await one.marked("known", "b")
    await among.find()
    await until(lambda: one.status().up and other.status().up)
    await until(lambda: value(one, "a") > 1.9 and value(other, "a") > 1.9)
    assert value(one, "a") == pytest.approx(2.0, abs=0.1)
    assert value(other, "a") == pytest.approx(2.0, abs=0.1)
    await until(lambda: full(one, most=4))
    assert await full(other, most=4)
    await until(lambda: one.marked("known", "b"))
    assert await other.claim("ticket", "a", 1000) is Claim.REPEATED
    assert dict(one.notes("hold")) == dict(other.notes("hold")) == {"alice": "moving"}
    late = await among.member()
    await until(lambda: value(late, "a") > 1.9 and late.notes("hold"))
    mine.release()
    held[0].release()
    await until(lambda: not_full_of_four(late))


async def not_full_of_four(state: SharedState) -> bool:
    return not await full(state, most=4)
