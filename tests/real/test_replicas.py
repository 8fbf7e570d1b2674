"""Three replicas behind HAProxy with one Redis: what one of them knows, all heed, whatever dies."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest

from tests.peers.canaries import canary
from tests.peers.certs import CertificateFiles
from tests.peers.dovecot import Dovecot, dovecot
from tests.peers.line_client import LineClient
from tests.peers.process import wait_until
from tests.peers.proxy import Proxy
from tests.peers.redis import Redis
from tests.real import kerberos_rig
from tests.real.kerberos_clients import TRY_LATER, WRONG, by_gssapi, by_kpop
from tests.real.kerberos_rig import Site, give_to_service
from tests.real.replicas import LIMIT, Load, Replicas, configuration, replicas, shared_state, started

pytestmark = pytest.mark.timeout(300)  # three of everything on a machine that does other things, too
PEOPLE = [f"user{number}" for number in range(24)]


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    with dovecot(users=("alice", "bob", *PEOPLE)) as made:
        yield made


@pytest.fixture
def it(server: Dovecot) -> Iterator[Replicas]:
    with started() as (start, directory), replicas(server, start, directory) as made:
        yield made


def test_limits_hold_across_replicas_and_those_of_a_dead_one_are_free(it: Replicas) -> None:
    clients: list[LineClient] = []
    for _ in range(LIMIT):
        answer, client = it.log_in(it.port)
        assert answer.startswith(b"+OK"), answer
        clients.append(client)
    open_at = 'popproxy_sessions{listener="pop3",phase="transaction"}'
    assert all(replica.metrics()[open_at] for replica in it.replicas), "one of them has none"
    for _ in it.replicas:
        assert not it.try_in(it.port)
    clients[0].command("QUIT")
    wait_until(lambda: it.try_in(it.port), "a place that was given back is free everywhere")
    answer, clients[0] = it.log_in(it.port)
    assert answer.startswith(b"+OK"), answer
    assert not it.try_in(it.port)
    it.kill(it.replicas[0])
    began = time.monotonic()
    wait_until(lambda: it.try_in(it.port), "what the dead one held is free")
    print(f"free {time.monotonic() - began:.1f} s after SIGKILL")
    for client in clients:
        client.socket.close()


def test_guesses_count_and_orders_hold_across_replicas(it: Replicas) -> None:
    """Four wrong passwords, each at another replica than the one before; then even the right one has to wait."""

    def slowed(replica: Proxy) -> list[object]:
        listed = replica.command("penalties", "list", "--json", "--all")
        assert listed.returncode == 0, listed.stderr
        return [
            (row["user"], round(row["level"])) for row in json.loads(listed.stdout)["penalties"]
            if row["scope"] == "user_address"
        ]  # fmt: skip

    for _ in range(4):
        answer, client = it.log_in(it.port, "bob", canary())
        client.socket.close()
        assert answer.startswith(b"-ERR [AUTH]"), answer
    began = time.monotonic()
    for replica in it.replicas:
        wait_until(lambda replica=replica: slowed(replica) == [("bob", 4)], "every replica knows all of them")  # type: ignore[misc]
    print(f"known to all within {time.monotonic() - began:.1f} s, three commands included")
    for _ in it.replicas:
        answer, client = it.log_in(it.port, "bob")
        client.socket.close()
        assert answer.startswith(b"-ERR [SYS/TEMP]"), answer
    assert it.replicas[0].command("penalties", "clear", "bob").returncode == 0

    def gets_in() -> bool:
        answer, client = it.log_in(it.port, "bob")
        client.socket.close()
        return answer.startswith(b"+OK")

    for _ in it.replicas:
        wait_until(gets_in, "forgiven everywhere")
    assert it.replicas[0].command("hold", "bob", "--refuse").returncode == 0
    wait_until(lambda: not any(gets_in() for _ in it.replicas), "held everywhere")
    assert it.replicas[1].command("release", "bob").returncode == 0
    wait_until(lambda: all(gets_in() for _ in it.replicas), "released everywhere")


async def test_redis_stops_and_starts_under_load(it: Replicas, server: Dovecot) -> None:
    """Nobody notices; a user's limit is his share at each replica, and what was open counts when Redis is back."""
    held = [await asyncio.to_thread(it.log_in, it.port) for _ in range(3)]
    assert all(answer.startswith(b"+OK") for answer, _ in held)
    load = Load(it.port, {user: server.users[user] for user in PEOPLE})
    running = asyncio.create_task(load.run())
    await reached(load, 60)
    await asyncio.to_thread(it.redis.stop)
    await reached(load, 60)
    more = []
    while True:  # each replica has one of alice's sessions and gives her one more, its share of the limit
        answer, client = await asyncio.to_thread(it.log_in, it.port)
        if not answer.startswith(b"+OK"):
            client.socket.close()
            break
        more.append(client)
    assert b"[IN-USE]" in answer
    assert len(more) <= LIMIT - 3
    await asyncio.to_thread(it.redis.start)
    await asyncio.to_thread(it.all_up)
    await reached(load, 60)
    load.end()
    await running
    assert load.broken == []
    print(f"{load.done} sessions, slowest login {load.slowest:.2f} s")
    for _, client in held:
        assert client.command("NOOP").startswith(b"+OK")
    taken = 3 + len(more)
    for _ in range(LIMIT - taken):
        answer, client = await asyncio.to_thread(it.log_in, it.port)
        assert answer.startswith(b"+OK"), answer
        more.append(client)

    def full() -> bool:
        return not it.try_in(it.port)

    await asyncio.to_thread(wait_until, full, "what was opened meanwhile counts again")
    for client in [*more, *(client for _, client in held)]:
        client.socket.close()


async def reached(load: Load, more: int) -> None:
    """So many more sessions have ended well."""
    goal = load.done + more
    async with asyncio.timeout(60):
        while load.done < goal:
            assert not load.broken, load.broken
            await asyncio.sleep(0.05)


async def test_rolling_restart_under_load(server: Dovecot) -> None:
    """One replica after the other is told to end, drains, and another comes in its place."""
    with started() as (start, directory), replicas(server, start, directory) as it:
        load = Load(it.port, {user: server.users[user] for user in PEOPLE})
        running = asyncio.create_task(load.run())
        await reached(load, 40)
        for _ in range(3):
            old = it.replicas.pop(0)
            port, http = old.port(), old._http
            await asyncio.to_thread(old.stop)
            again = configuration(server, it.redis, directory, port, http={"listen": f"127.0.0.1:{http}"})
            new = await asyncio.to_thread(start, again)
            it.replicas.append(new)
            await asyncio.to_thread(it.all_up)
            await reached(load, 40)
        load.end()
        await running
        print(f"{load.done} sessions, slowest login {load.slowest:.2f} s")
        assert load.broken == []


def test_a_login_costs_redis_one_call_and_its_end_another(server: Dovecot) -> None:
    logins = 60
    with started() as (start, directory), Redis() as redis:
        proxy = start(configuration(server, redis, directory))
        header = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n"

        def session() -> None:
            with LineClient(proxy.port()) as client:
                client.send(header)
                assert client.line().startswith(b"+OK")
                client.command("USER alice")
                assert client.command(f"PASS {server.users['alice']}").startswith(b"+OK")
                client.command("QUIT")

        session()
        before, began = redis.calls(), time.monotonic()
        for _ in range(logins):
            session()
        wait_until(lambda: redis.calls()["hdel"] - before.get("hdel", 0) >= 2 * logins - 4, "all are given back")
        seconds, after = time.monotonic() - began, redis.calls()
    spent = {name: count - before.get(name, 0) for name, count in after.items() if name not in {"info", "ping"}}
    calls = spent.pop("evalsha")
    ticks = 5 * seconds + 2  # four exchanges a second, and some slack
    print(f"{calls} calls, {sum(spent.values())} commands inside them, for {logins} logins in {seconds:.1f} s")
    assert calls <= 2 * logins + ticks
    assert sum(spent.values()) <= 20 * logins + 15 * ticks


def test_a_server_gets_no_more_sessions_than_it_can_take_from_all_replicas(server: Dovecot) -> None:
    pool = {"balance": {"sessions": 1, "queue_wait": "60s"}}
    with started() as (start, directory), Redis() as redis:
        first, second = [start(configuration(server, redis, directory, pool=pool)) for _ in range(2)]

        def enters(replica: Proxy, user: str) -> LineClient:
            client = LineClient(replica.port(), seconds=60)
            client.send(b"PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n")
            assert client.line().startswith(b"+OK")
            client.command(f"USER {user}")
            client.send(f"PASS {server.users[user]}\r\n".encode())
            return client

        inside = enters(first, "alice")
        assert inside.line().startswith(b"+OK")
        waits = enters(second, "bob")
        wait_until(lambda: second.metrics()['popproxy_queue_waiting{pool="main"}'] == 1, "bob to wait")
        assert not second.audit("login")
        assert inside.command("QUIT").startswith(b"+OK")
        assert waits.line().startswith(b"+OK")
        assert waits.command("QUIT").startswith(b"+OK")


# ---- tickets ----


@pytest.fixture(scope="module")
def nodes(kerberos: Site, server_certificate: CertificateFiles) -> Iterator[tuple[Redis, list[Proxy]]]:
    """Three hosts: each has a replay cache of its own. The last one has no keys in common with others, it thinks."""
    with started() as (start, directory), Redis() as redis:
        made = []
        for number in range(3):
            complete = kerberos_rig.configuration(
                kerberos.realm, kerberos.backend, server_certificate, directory, password="canary-any"
            )
            cache = directory / f"replay{number}"
            cache.mkdir(mode=0o700)
            give_to_service(cache)
            section = {**kerberos.proxy.configuration["kerberos"], "replay_cache": str(cache)}
            if number == 2:
                section["keys_shared"] = False
            complete = {
                **complete, "kerberos": section, "pools": kerberos.proxy.configuration["pools"],
                "shared_state": shared_state(redis, directory),
            }  # fmt: skip
            made.append(start(complete, env=kerberos.realm.environment))
        yield redis, made


def test_a_ticket_is_good_once_at_all_replicas(kerberos: Site, nodes: tuple[Redis, list[Proxy]]) -> None:
    from tests.real.test_kerberos_refusals import ticket

    redis, (one, other, loner) = nodes
    for first, again in ((by_gssapi, by_gssapi), (by_kpop, by_gssapi), (by_gssapi, by_kpop), (by_kpop, by_kpop)):
        token = ticket(kerberos)
        assert first(one, token) is None
        answer = again(other, token)
        assert answer == (WRONG if again is by_gssapi else b"34"), (first, again)
        assert again(one, token) == answer
    assert by_gssapi(loner, ticket(kerberos)) is None
    redis.stop()
    wait_until(lambda: by_gssapi(one, ticket(kerberos)) == TRY_LATER, "nobody knows whether it was used elsewhere")
    assert by_kpop(other, ticket(kerberos)) == b"60"
    assert by_gssapi(loner, ticket(kerberos)) is None
    redis.start()
    wait_until(lambda: by_gssapi(one, ticket(kerberos)) is None, "Redis is back")
