"""Pools of several servers in the running proxy: failover, breakers, checks, limits, operators; the client's view."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from popproxy.backend.balancer import State
from popproxy.types import Address
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.scripted import Cut, Hang, Reaction, ScriptedBackend, Slow
from tests.session.rig import Backend, Rig, log_in, running, until

pytestmark = pytest.mark.long

LATER = b"-ERR [SYS/TEMP] temporary problem, try again later"
WELCOME = b"+OK Logged in"
QUICK = {"retry": "50ms", "slow_start": "0s"}


@contextlib.asynccontextmanager
async def site(tmp_path: Path, *servers: ScriptedBackend, **sections: Any) -> AsyncIterator[Rig]:
    """A proxy before a pool of these servers, which share their maildrops unless `pool` says otherwise."""
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server)
        balance = {**QUICK, **sections.pop("balance", {})}
        pool = {"servers": [server.address for server in servers], "shared": True, "balance": balance}
        pool |= sections.pop("pool", {})
        yield await stack.enter_async_context(running(tmp_path, backend=Backend(), pool=pool, **sections))


def state(rig: Rig, server: ScriptedBackend) -> State:
    return member(rig, server).state  # type: ignore[no-any-return]


def member(rig: Rig, server: ScriptedBackend) -> Any:
    return next(one.member for one in rig.parts.pools["main"].backends if one.label == server.address)


def logins(server: ScriptedBackend) -> int:
    return sum(session.logged_in for session in server.sessions)


async def stopped(server: ScriptedBackend) -> None:
    """It refuses connections at its address, until it is entered again (the rig wants that undone at the end)."""
    await server.__aexit__()


# ---- failover and the breaker ----


@pytest.mark.parametrize("fault", ["refuses", "rejects", "hangs", "closes", "hangs later"])
async def test_no_login_fails_that_could_succeed(tmp_path: Path, fault: str) -> None:
    broken, well = ScriptedBackend(), ScriptedBackend()
    short = "hangs" in fault
    timeouts = {"connect": "300ms" if short else "10s", "connect_total": "500ms" if short else "10s"}
    limits = {"retry": "60s", "next_after": "10s"}
    async with site(tmp_path, broken, well, timeouts=timeouts, balance=limits) as rig:
        if fault == "refuses":
            await stopped(broken)
        greetings: dict[str, Reaction] = {
            "rejects": b"-ERR [SYS/TEMP] too busy\r\n", "hangs": Hang(), "closes": Cut(), "hangs later": b"+OK\r\n",
        }  # fmt: skip
        broken.greeting = greetings.get(fault, b"")
        broken.on_command["CAPA"] = Hang()
        assert [await log_in(rig) for _ in range(6)] == [WELCOME] * 6
        assert state(rig, broken) is State.DOWN
        asked = len(broken.sessions)
        assert [await log_in(rig) for _ in range(3)] == [WELCOME] * 3
        assert len(broken.sessions) == asked, "nobody waits for a server that is known to be down"
        assert 'backend_state{backend="%s",pool="main",state="down"} 1.0' % broken.address in shown(rig)  # noqa: UP031
        record = rig.audit("backend_state")[-1]
        assert (record["popproxy.backend"], record["popproxy.state"]) == (broken.address, "down")


def shown(rig: Rig) -> str:
    return rig.metrics.render("")[0].decode()  # type: ignore[no-any-return]


async def test_many_logins_at_once_when_a_server_falls_silent(tmp_path: Path) -> None:
    """None of them waits longer than `next_after`, and those that come when it is found out not at all."""
    silent, well = ScriptedBackend(greeting=Hang()), ScriptedBackend()
    limits, timeouts = {"retry": "60s", "next_after": "50ms"}, {"connect": "3s"}
    async with site(tmp_path, silent, well, balance=limits, timeouts=timeouts) as rig:
        assert await asyncio.gather(*(log_in(rig) for _ in range(8))) == [WELCOME] * 8
        assert state(rig, silent) is State.UP, "slow or dead? nobody knows yet"
        await until(lambda: state(rig, silent) is State.DOWN, "it to be found out by what these have left behind")
        asked = len(silent.sessions)
        assert await log_in(rig) == WELCOME
        assert (len(silent.sessions), silent.lines) == (asked, [])


async def test_only_one_server_gets_the_password_whichever_is_first(tmp_path: Path) -> None:
    """Both greet at about the same time, again and again: exactly one PASS for each login, and none fails."""
    early, late = ScriptedBackend(greeting=Slow(0.06, b"+OK\r\n")), ScriptedBackend(greeting=Slow(0.02, b"+OK\r\n"))
    async with site(tmp_path, early, late, balance={"next_after": "40ms"}) as rig:
        assert await asyncio.gather(*(log_in(rig, f"user{number}") for number in range(40))) == [WELCOME] * 40
        passwords = [line for server in (early, late) for line in server.lines if line.startswith(b"PASS")]
        assert len(passwords) == 40
        assert [state(rig, server) for server in (early, late)] == [State.UP] * 2, "to be slower is no fault"
        assert not any(rig.metrics.backend_errors.values())


async def test_a_server_that_was_overtaken_and_answers_late_is_not_held_to_be_down(tmp_path: Path) -> None:
    slow, well = ScriptedBackend(greeting=Slow(0.3, b"+OK\r\n")), ScriptedBackend()
    async with site(tmp_path, slow, well, balance={"next_after": "10ms", "failures": 1}) as rig:
        assert [await log_in(rig) for _ in range(3)] == [WELCOME] * 3
        await until(lambda: len([1 for session in slow.sessions if session.ended]) == 3, "the greetings to come")
        assert state(rig, slow) is State.UP
        assert not any(line.startswith(b"PASS") for line in slow.lines)


async def test_a_client_that_leaves_while_two_servers_are_asked(tmp_path: Path) -> None:
    servers = ScriptedBackend(greeting=Hang()), ScriptedBackend(greeting=Hang())
    async with site(tmp_path, *servers, balance={"next_after": "10ms", "sessions": 5}) as rig:
        client = await rig.greeted()
        await client.send("USER alice\r\nPASS canary-pw-right\r\n")
        await until(lambda: all(server.sessions for server in servers), "both to be asked")
        client.reset()
        await until(lambda: all(server.sessions[0].ended for server in servers), "both to be left")
        assert [member(rig, server).connections for server in servers] == [0, 0]


@contextlib.asynccontextmanager
async def beside_a_silent_one() -> AsyncIterator[int]:
    """The port of a server on 127.0.0.1, at which 127.0.0.2 lets clients connect and says nothing."""
    while True:
        async with ScriptedBackend() as well:
            try:
                silent = socket.create_server(("127.0.0.2", well.port))
            except OSError:  # somebody else has it: another one, then
                continue
            with silent:
                yield well.port
                return


async def test_one_address_of_a_name_is_silent(tmp_path: Path) -> None:
    """A server by a name with two addresses need not be one of several to be reached at the other."""
    async with beside_a_silent_one() as port:
        pool = {"servers": [f"mail.example.com:{port}"], "shared": False}
        async with site(tmp_path, pool=pool, balance={"next_after": "50ms"}) as rig:
            addresses = [Address("127.0.0.2", port), Address("127.0.0.1", port)]
            rig.parts.resolver._known[Address("mail.example.com", port)] = (float("inf"), addresses)
            assert [await log_in(rig) for _ in range(2)] == [WELCOME] * 2


async def test_a_server_that_is_silent_in_the_handshake_is_found_out_as_soon_as_any_other(
    tmp_path: Path, authority: Authority, server_certificate: CertificateFiles
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        well = ScriptedBackend(tls="implicit", certificate=server_certificate)
        async with well:
            pool = {
                "servers": [f"127.0.0.1:{silent.getsockname()[1]}", well.address], "tls": "implicit",
                "ca": str(authority.ca), "allow_cleartext": False,
            }  # fmt: skip
            limits = {"connect": "300ms", "handshake": "60s"}
            async with site(tmp_path, pool=pool, timeouts=limits, balance={"next_after": "10ms"}) as rig:
                assert [await log_in(rig) for _ in range(3)] == [WELCOME] * 3
                down = rig.parts.pools["main"].backends[0].member
                await until(lambda: down.state is State.DOWN, "it to be found out")


async def test_a_slow_server_gets_its_time_if_the_other_one_is_dead(tmp_path: Path) -> None:
    slow, dead = ScriptedBackend(greeting=Slow(0.7, b"+OK\r\n")), ScriptedBackend()
    timeouts = {"connect": "50ms", "connect_total": "20s"}
    async with site(tmp_path, slow, dead, timeouts=timeouts) as rig:
        await stopped(dead)
        assert await log_in(rig) == WELCOME


async def test_a_server_that_comes_back_is_found_by_asking_and_used_again(tmp_path: Path) -> None:
    first, second = ScriptedBackend(), ScriptedBackend()
    async with site(tmp_path, first, second) as rig:
        await stopped(first)
        while state(rig, first) is State.UP:
            assert await log_in(rig) == WELCOME
        await asyncio.sleep(0.2)
        assert state(rig, first) is State.DOWN
        await first.__aenter__()
        await until(lambda: state(rig, first) is State.UP, "the probe to succeed")
        assert all(session.lines in ([], [b"QUIT"]) for session in first.sessions), "a probe sends no credential"
        assert await log_in(rig) == WELCOME
        assert logins(first) == 1
        assert [record["popproxy.state"] for record in rig.audit("backend_state")] == ["down", "up"]
        await stopped(first)


async def test_a_server_that_greets_well_and_fails_at_each_login_stays_behind(tmp_path: Path) -> None:
    """After the first octet of a credential nothing is tried again: those logins fail, but they get few."""
    sick, well = ScriptedBackend(on_command={"PASS": Cut()}), ScriptedBackend()
    async with site(tmp_path, sick, well, balance={"failures": 2, "retry": "10s"}) as rig:
        assert [await log_in(rig) for _ in range(2)] == [LATER] * 2
        assert state(rig, sick) is State.DOWN
        rig.parts.pools["main"].answered(rig.parts.pools["main"].backends[0], rig.parts.reactor.loop.time())
        assert [await log_in(rig) for _ in range(6)] == [LATER] + [WELCOME] * 5
        assert state(rig, sick) is State.DOWN


async def test_wrong_passwords_say_nothing_against_a_server(tmp_path: Path) -> None:
    first, second = ScriptedBackend(users={}), ScriptedBackend()
    async with site(tmp_path, first, second, authentication={"tries": 100}) as rig:
        for _ in range(5):
            assert (await log_in(rig)).startswith(b"-ERR [AUTH]")
        assert state(rig, first) is State.UP
        assert not second.sessions


# ---- maildrops that are not shared ----


async def test_a_user_whose_only_server_is_down_gets_no_empty_maildrop(tmp_path: Path) -> None:
    servers = [ScriptedBackend() for _ in range(3)]
    async with site(tmp_path, *servers, pool={"shared": False, "balance": {"choose": "hash", **QUICK}}) as rig:
        home: dict[str, ScriptedBackend] = {}
        for number in range(30):
            assert await log_in(rig, f"user{number}") == WELCOME
            home[f"user{number}"] = next(server for server in servers if server.sessions)
            for server in servers:
                server.sessions.clear()
        assert len({server.port for server in home.values()}) == 3, "each has some users"
        await stopped(servers[0])
        for user, server in home.items():
            expected = LATER if server is servers[0] else WELCOME
            assert [await log_in(rig, user) for _ in range(2)] == [expected] * 2
            assert not any(other.sessions for other in servers if other is not server)
            server.sessions.clear()


# ---- checks ----


async def test_regular_checks_find_a_server_down_and_up_without_any_login(tmp_path: Path) -> None:
    only = ScriptedBackend()
    pool = {"check": {"every": "20ms", "timeout": "5s"}, "shared": False}
    async with site(tmp_path, only, pool=pool) as rig:
        await until(lambda: len(only.sessions) >= 3, "three checks")
        await stopped(only)
        await until(lambda: state(rig, only) is State.DOWN, "it to be found down")
        assert 'backend_up{backend="%s"} 0.0' % only.address in shown(rig)  # noqa: UP031
        await only.__aenter__()
        await until(lambda: state(rig, only) is State.UP, "it to be found up")
        assert await log_in(rig) == WELCOME
        await stopped(only)


async def test_checks_that_log_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECK_PASSWORD", "canary-pw-check")
    only = ScriptedBackend(users={"check": "canary-pw-check", "alice": "canary-pw-right"})
    check = {"every": "20ms", "user": "check", "password": {"env": "CHECK_PASSWORD"}}
    async with site(tmp_path, only, pool={"check": check, "shared": False}) as rig:
        await until(lambda: any(session.updated for session in only.sessions), "a check that says QUIT")
        assert b"USER check" in only.lines
        only.users = {"alice": "canary-pw-right"}
        await until(lambda: state(rig, only) is State.DOWN, "a check that is refused")
        assert await log_in(rig) == WELCOME, "what is left is tried all the same"


# ---- limits ----


async def test_more_logins_than_a_server_can_take_wait_for_their_turn(tmp_path: Path) -> None:
    only = ScriptedBackend()
    async with site(tmp_path, only, pool={"shared": False}, balance={"sessions": 2}) as rig:
        clients = []
        for user in ("alice", "bob"):
            client = await rig.greeted()
            await client.command(f"USER {user}")
            assert await client.command("PASS canary-pw-right") == WELCOME
            clients.append(client)
        waiting = asyncio.create_task(log_in(rig, "carol"))
        await until(lambda: 'popproxy_queue_waiting{pool="main"} 1.0' in shown(rig), "carol in the queue")
        assert member(rig, only).connections == 2
        assert await clients[0].command("QUIT") == b"+OK bye"
        assert await waiting == WELCOME
        clients[1].reset()
        await until(lambda: member(rig, only).connections == 0, "all places given back")


async def test_who_waits_too_long_is_told_to_come_back(tmp_path: Path) -> None:
    only = ScriptedBackend()
    limits = {"sessions": 1, "queue": 1, "queue_wait": "100ms"}
    async with site(tmp_path, only, pool={"shared": False}, balance=limits) as rig:
        client = await rig.greeted()
        await client.command("USER alice")
        assert await client.command("PASS canary-pw-right") == WELCOME
        assert set(await asyncio.gather(log_in(rig, "bob"), log_in(rig, "carol"))) == {LATER}
        assert len(only.sessions) == 1
        assert {record["event.reason"] for record in rig.audit("backend_connect")} == {"limit"}


async def test_a_full_server_sends_logins_to_the_next(tmp_path: Path) -> None:
    first, second = ScriptedBackend(), ScriptedBackend()
    async with site(tmp_path, first, second, balance={"sessions": 1}) as rig:
        clients = []
        for user in ("alice", "bob"):
            clients.append(await rig.greeted())
            await clients[-1].command(f"USER {user}")
            assert await clients[-1].command("PASS canary-pw-right") == WELCOME
        assert (logins(first), logins(second)) == (1, 1)


async def test_the_place_at_a_server_whose_name_is_gone_is_given_back(tmp_path: Path) -> None:
    only = ScriptedBackend()
    pool = {"servers": ["no-such-host.invalid:110", "127.0.0.1:1"]}
    async with site(tmp_path, only, pool=pool, balance={"sessions": 1, "retry": "60s"}) as rig:
        assert [await log_in(rig) for _ in range(3)] == [LATER] * 3
        assert [one.member.connections for one in rig.parts.pools["main"].backends] == [0, 0]


async def test_places_are_given_back_whatever_becomes_of_the_login(tmp_path: Path) -> None:
    dead, only = ScriptedBackend(), ScriptedBackend(users={"alice": "canary-pw-right"})
    async with site(tmp_path, dead, only, balance={"sessions": 1}, authentication={"tries": 100}) as rig:
        await stopped(dead)
        for user in ("bob", "alice", "carol", "alice"):
            answer = await log_in(rig, user)
            assert answer == WELCOME if user == "alice" else answer.startswith(b"-ERR [AUTH]")
        only.greeting = Cut()
        assert await log_in(rig) == LATER
        for server in (dead, only):
            await until(lambda server=server: member(rig, server).connections == 0, "places given back")  # type: ignore[misc]


# ---- operators ----


async def test_drained_servers_get_no_logins_and_keep_their_sessions(tmp_path: Path) -> None:
    first, second = ScriptedBackend([b"x"]), ScriptedBackend()
    async with site(tmp_path, first, second) as rig:
        client = await rig.greeted()
        await client.command("USER alice")
        assert await client.command("PASS canary-pw-right") == WELCOME
        pool = rig.parts.pools["main"]
        pool.order(pool.backends[0], State.DRAIN)
        assert await log_in(rig) == WELCOME
        assert (logins(first), logins(second)) == (1, 1)
        assert (await client.command("STAT")).startswith(b"+OK 1 ")
        pool.order(pool.backends[1], State.MAINTENANCE)
        assert await log_in(rig) == LATER
        assert (logins(first), logins(second)) == (1, 1)
        pool.order(pool.backends[0], State.UP)
        assert await log_in(rig) == WELCOME
        assert logins(first) == 2
        states = [(record["popproxy.backend"], record["popproxy.state"]) for record in rig.audit("backend_state")]
        assert states == [(first.address, "drain"), (second.address, "maintenance"), (first.address, "up")]
        assert json.dumps(rig.audit("backend_state")).count("ordered by an operator") == 3
