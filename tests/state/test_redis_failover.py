"""The Redis that answered dies, and another takes its place: by Sentinel, and in a cluster. All limits hold again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest

from popproxy.observe.metrics import Metrics
from popproxy.state.mirrored import MirroredState
from popproxy.state.redis_client import RedisPlace
from popproxy.state.redis_store import RedisStore
from popproxy.state.shared import Claim, Lease
from popproxy.types import Address, Secret
from tests.peers.process import wait_until
from tests.peers.redis import Redis
from tests.state.sharing import LEAKS, LIFETIMES, until

pytestmark = [pytest.mark.real, pytest.mark.long]

OWNERS = [f"user{number}" for number in range(48)]  # so many that every part of a cluster has some
ONE_EACH = [("", 2)]


@contextmanager
def watched() -> Iterator[tuple[RedisPlace, Redis, Redis]]:
    """A primary and its replica, and a sentinel that watches them."""
    with Redis() as primary, Redis(options=("--replicaof", "127.0.0.1", str(primary.port))) as replica:
        port = primary.start_sentinel("mail", down_after=1.0)
        wait_until(lambda: _follows(replica), "the replica follows")
        wait_until(lambda: primary.replicas_known("mail") == 1, "the sentinel knows the replica")
        yield RedisPlace("sentinel", (Address("127.0.0.1", port),), primary="mail", timeout=0.5), primary, replica


@contextmanager
def cluster() -> Iterator[tuple[RedisPlace, Redis, Redis]]:
    """Three primaries, who can agree that one is dead, and a replica of the one that will be."""
    options = ("--cluster-node-timeout", "1000")
    with ExitStack() as stack:
        nodes = [stack.enter_context(Redis(cluster=True, alone=False, options=options)) for _ in range(4)]
        *primaries, replica = nodes
        for node, (first, last) in zip(primaries, ((0, 5460), (5461, 10922), (10923, 16383)), strict=True):
            node.serve_slots(first, last)
        for node in nodes[1:]:
            node.meet(nodes[0])
        wait_until(lambda: all(node.knows() == 4 for node in nodes), "all have met")
        replica.replicate(primaries[0])
        wait_until(lambda: _follows(replica), "the replica follows")
        wait_until(lambda: all(node.whole() for node in nodes), "the cluster is whole")
        servers = tuple(Address("127.0.0.1", node.port) for node in primaries)
        yield RedisPlace("cluster", servers, timeout=0.5), primaries[0], replica


def _replication(node: Redis) -> dict[str, Any]:
    with node.client() as client:
        return dict(client.info("replication"))


def _follows(replica: Redis) -> bool:
    return bool(_replication(replica).get("master_link_status") == "up")


def _leads(replica: Redis) -> bool:
    return bool(_replication(replica)["role"] == "master")


@asynccontextmanager
async def member(place: RedisPlace) -> AsyncIterator[MirroredState]:
    metrics = Metrics([], [])
    store = RedisStore(place, Secret(b"k" * 32), metrics, prefix="popproxy", lifetime=30.0)
    state = MirroredState(store, LEAKS, LIFETIMES, metrics, kind="redis")
    await state.start()
    try:
        assert state.status().up
        yield state
    finally:
        await state.stop()


@pytest.mark.parametrize("several", [watched, cluster])
async def test_limits_hold_again_once_a_replica_has_taken_over(several: object) -> None:
    assert callable(several)
    with several() as (place, primary, replica):
        async with member(place) as one, member(place) as other:
            taken: list[Lease] = []
            for owner in OWNERS:
                for state in (one, other):
                    lease = await state.acquire(owner, ONE_EACH)
                    assert not isinstance(lease, str), owner
                    taken.append(lease)
                assert await one.acquire(owner, ONE_EACH) == ""
            assert await one.claim("delay", "alice", 1000) is Claim.FIRST
            one.note("hold", "bob", "bob is moving")
            await until(lambda: other.notes("hold"))

            written = _replication(primary)["master_repl_offset"]
            await until(lambda: _replication(replica)["slave_repl_offset"] >= written)
            primary.kill()
            over = asyncio.Event()
            asking = asyncio.create_task(_ask(one, over))
            await until(lambda: asyncio.to_thread(_leads, replica))
            await until(lambda: one.status().up and other.status().up)
            await until(lambda: _agree(one, other))
            over.set()
            assert await asking == {""}

            for owner in OWNERS:
                assert await one.acquire(owner, ONE_EACH) == "", owner
                assert await other.acquire(owner, ONE_EACH) == "", owner
            assert await other.claim("delay", "alice", 1000) is Claim.REPEATED
            assert dict(other.notes("hold")) == {"bob": "bob is moving"}
            for lease in taken[::2]:  # of the one
                lease.release()
            for owner in OWNERS:
                await until(lambda owner=owner: _free(other, owner))


async def _ask(state: MirroredState, over: asyncio.Event) -> set[object]:
    """All answers to one session more than there may be, from before the failover until it is over."""
    answers: set[object] = set()
    while not over.is_set():
        for owner in OWNERS:
            answers.add(await state.acquire(owner, ONE_EACH))
        await asyncio.sleep(0.02)
    return answers


async def _agree(one: MirroredState, other: MirroredState) -> bool:
    """Does a word of the one reach the other, who asks Redis?"""
    claim = await one.claim("agree", "", 0.001)
    return claim is not Claim.FIRST_HERE and one.status().members == other.status().members == 2


async def _free(state: MirroredState, owner: str) -> bool:
    return not isinstance(await state.acquire(owner, ONE_EACH), str)
