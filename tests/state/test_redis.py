"""What is only so with Redis: who may do what there, what lies there, what it costs, what strangers put there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from popproxy.observe.metrics import Metrics
from popproxy.state import redis_scripts
from popproxy.state.mirrored import MirroredState
from popproxy.state.redis_client import RedisPlace, RedisTls
from popproxy.state.redis_store import RedisStore
from popproxy.state.shared import Claim
from popproxy.types import Address, Secret
from tests.peers.canaries import canary
from tests.peers.certs import Authority
from tests.peers.process import REPOSITORY
from tests.peers.redis import Redis
from tests.state.sharing import LEAKS, LIFETIMES, until

pytestmark = pytest.mark.real


@asynccontextmanager
async def member(place: RedisPlace, *, key: bytes = b"k" * 32) -> AsyncIterator[tuple[MirroredState, Metrics]]:
    metrics = Metrics([], [])
    store = RedisStore(place, Secret(key), metrics, prefix="popproxy", lifetime=5.0)
    state = MirroredState(store, LEAKS, LIFETIMES, metrics, kind="redis")
    await state.start()
    try:
        yield state, metrics
    finally:
        await state.stop()


def at(redis: Redis, **more: Any) -> RedisPlace:
    return RedisPlace("node", path=redis.path, **{"timeout": 2.0, **more})


async def everything(state: MirroredState) -> None:
    """Use all there is."""
    state.add("address", "192.0.2.77")
    state.mark("known", "alice\0192.0.2.77")
    assert await state.claim("kerberos", "0123", 1000) is Claim.FIRST
    assert await state.claim("kerberos", "4567", 1000) is Claim.FIRST
    state.unclaim("kerberos", "4567")
    state.note("hold", "alice", "alice is moving")
    state.note("hold", "bob", "bob is moving")
    state.note("hold", "bob", None)
    lease = await state.acquire("alice", [("", 5), ("192.0.2.77", 5)])
    assert not isinstance(lease, str)
    other = await state.acquire("bob", [("", 5)])
    assert not isinstance(other, str)
    other.release()


def contents(redis: Redis) -> bytes:
    """All names of keys, and all that is in them."""
    with redis.client() as client:
        found = []
        for key in client.scan_iter():
            kind = client.type(key)
            read = {b"hash": client.hgetall, b"stream": client.xrange, b"zset": client.zrange, b"string": client.get}
            found.append((key, client.zrange(key, 0, -1) if kind == b"zset" else read[kind](key)))
        return repr(found).encode()


async def settled(redis: Redis, *parts: bytes) -> bytes:
    """The contents, once they have keys with all these parts in their names."""
    await until(lambda: all(part in contents(redis) for part in parts))
    return contents(redis)


async def test_no_name_and_no_address_lies_there() -> None:
    with Redis() as redis:
        async with member(at(redis)) as (state, _):
            await everything(state)
            found = await settled(redis, b":history", b":notes", b":m:", b":c:", b":l:")
    for clear in (b"alice", b"bob", b"192.0.2", b"moving", b"hold", b"0123", b"address"):
        assert clear not in found
    assert set(re.findall(rb"'(\{[^}]*\})", found)) == {b"{popproxy:0}"}


async def test_what_strangers_put_there_harms_nobody() -> None:
    with Redis() as redis, redis.client() as client:
        async with member(at(redis)) as (state, metrics), member(at(redis)) as (other, _):
            await everything(state)
            await settled(redis, b":history", b":notes", b":m:", b":c:", b":l:")
            for key in list(client.scan_iter()):
                match client.type(key):
                    case b"hash":
                        client.hset(key, "stranger", "many")
                        client.hset(key, "endless", "9" * 400)
                    case b"stream":
                        client.xadd(key, {"m": "x", "c": b"\xff" * 40})
                        client.xadd(key, {"\xff": "\n"})
                    case b"zset":
                        client.zadd(key, {"stranger": 1e300})
            lease = await other.acquire("alice", [("", 2), ("192.0.2.1", 1)])
            assert not isinstance(lease, str)
            await until(lambda: metrics.shared_state_rejected >= 2)
            for key in list(client.scan_iter()):
                client.delete(key)
                client.lpush(key, "garbage")
            second = await other.acquire("alice", [("", 4), ("192.0.2.1", 2)])
            assert not isinstance(second, str)
            state.add("address", "a")
            await until(lambda: other.level("address", "a") is not None)
            await until(lambda: state.status().up and other.status().up)
            assert [text for _, text in sorted(state.notes("hold").items())] == ["alice is moving"]


async def test_another_key_shares_nothing_and_is_noticed() -> None:
    with Redis() as redis:
        async with member(at(redis)) as (state, _):
            await everything(state)
            await settled(redis, b":history", b":notes")
            async with member(at(redis), key=b"l" * 32) as (other, metrics):
                await until(lambda: metrics.shared_state_rejected)
                assert not other.notes("hold")
                assert other.level("address", "192.0.2.77") is None


def rights_in_the_guide(password: str) -> str:
    guide = (REPOSITORY / "config/README.md").read_text()
    found = re.search(r"^ +(user popproxy on .*)$", guide, re.MULTILINE)
    assert found is not None
    return found[1].replace(">PASSWORD", f">{password}")


async def test_a_user_of_its_own_behind_tls_is_enough_and_may_do_nothing_else(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.server()
    password = canary()
    rights = rights_in_the_guide(password)
    called = set(re.findall(r"redis\.call\('([A-Z]+)'", Path(redis_scripts.__file__).read_text()))
    dialogue = {"ping", "hello", "auth", "select", "readonly", "asking", "eval", "evalsha", "command"}
    given = {word[1:] for word in rights.split() if word.startswith("+") and "|" not in word}
    assert given == dialogue | {name.lower() for name in called}
    tls = ("--tls-cert-file", str(files.cert), "--tls-key-file", str(files.key), "--tls-auth-clients", "no")
    with Redis(options=tls, tls=True) as redis:
        with redis.client() as client:
            _, name, *rules = rights.split()
            client.execute_command("ACL", "SETUSER", name, *rules)
            client.execute_command("ACL", "SETUSER", "default", "reset")
        place = RedisPlace(
            "node", (Address("localhost", redis.port),), username="popproxy", password=Secret(password),
            tls=RedisTls(authority.ca), timeout=2.0,
        )  # fmt: skip
        async with member(place) as (state, metrics):
            await everything(state)
            assert state.status().up
            assert not any(metrics.shared_state_failures.values())
        with redis.client() as client:
            client.execute_command("AUTH", "popproxy", password)
            for denied in (
                "SET theirs 1", "GET theirs", "KEYS *", "SCAN 0", "FLUSHALL", "CONFIG GET dir", "ACL LIST", "MONITOR",
                "CLIENT KILL TYPE normal", "CLIENT PAUSE 1000", "SCRIPT FLUSH", "SHUTDOWN", "EVAL x 1 theirs",
            ):  # fmt: skip
                with pytest.raises(NoPermissionError):
                    client.execute_command(*denied.split())


async def test_a_user_of_its_own_is_enough_in_a_cluster() -> None:
    password = canary()
    with Redis(cluster=True) as redis:
        with redis.client() as client:
            _, name, *rules = rights_in_the_guide(password).split()
            client.execute_command("ACL", "SETUSER", name, *rules)
            client.execute_command("ACL", "SETUSER", "default", "reset")
        server = Address("127.0.0.1", redis.port)
        place = RedisPlace("cluster", (server,), username="popproxy", password=Secret(password), timeout=2.0)
        async with member(place) as (state, metrics):
            await everything(state)
            assert state.status().up
            assert not any(metrics.shared_state_failures.values())
