"""Guessers and greedy users in front of the whole proxy: what they hear, what is recorded, and what others notice."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from popproxy.auth.hashes import scram_verifier
from popproxy.types import Mechanism
from tests.peers.scram_client import HandMadeClient
from tests.session.rig import Peer, Rig, answer_login, plain, running, until, users_file
from tests.session.sasl_client import b64, challenge, scram

WRONG = b"-ERR [AUTH] authentication failed"
SLOWED = b"-ERR [SYS/TEMP] too many wrong passwords, try again later"
GREEDY = b"-ERR [IN-USE] you have too many sessions open"


def sections(tmp_path: Path, **more: Any) -> dict[str, Any]:
    """Accounts that the proxy checks itself, and little patience."""
    base: dict[str, Any] = {
        "listener": {"authenticate": ["users"]},
        "users": users_file(tmp_path, alice="canary-pw-right", bob="canary-pw-bob"),
        "authentication": {"failure_delay": "0s", "tries": 100},
        "penalties": {"address": {"free": 6, "per_minute": 1}, "user_address": {"free": 3, "per_minute": 1}},
    }
    return {**base, **more}


async def attempt(client: Peer, user: str, password: str) -> bytes:
    await client.command(f"USER {user}")
    return await client.command(f"PASS {password}")


async def log_in(rig: Rig, client: Peer, user: str = "alice", password: str = "canary-pw-right") -> Peer:
    """The backend's end of a session that succeeds."""
    await client.send(f"USER {user}\r\nPASS {password}\r\n")
    backend = await rig.backend.logged_in()
    await client.expect("+OK send PASS")
    await client.expect("+OK Logged in")
    return backend


async def test_who_guesses_too_much_is_told_to_come_back_and_not_that_the_password_is_wrong(tmp_path: Path) -> None:
    async with running(tmp_path, **sections(tmp_path)) as rig:
        client = await rig.greeted()
        answers = [await attempt(client, "alice", f"canary-pw-{number}") for number in range(5)]
        assert answers == [WRONG] * 3 + [SLOWED] * 2
        assert await attempt(client, "alice", "canary-pw-right") == SLOWED  # nobody has looked at it
        answers = [await attempt(client, f"user{number}", "canary-pw-x") for number in range(5)]
        assert answers == [WRONG] * 3 + [SLOWED] * 2
        assert rig.backend.connections == []
        assert [record["event.reason"] for record in rig.audit("auth")].count("throttled") == 5
        assert rig.metrics.auth_throttled == {
            "address": 2, "network": 0, "user_address": 3, "account": 0, "total": 0,
        }  # fmt: skip
        assert rig.metrics.auth_attempts[("USER", "failure", "throttled")] == 5
        shown = rig.metrics.render("")[0].decode()
        assert 'popproxy_penalties_tracked{scope="account"} 4.0' in shown
        other = await rig.greeted(source="127.0.0.2")
        await log_in(rig, other)


async def test_slowed_logins_count_as_tries_of_the_connection(tmp_path: Path) -> None:
    more = sections(tmp_path, authentication={"failure_delay": "0s", "tries": 5})
    async with running(tmp_path, **more) as rig:
        client = await rig.greeted()
        for number in range(5):
            await attempt(client, "alice", f"canary-pw-{number}")
        assert await client.rest() == b""
        await rig.ends("too_many_failures")


async def test_a_tarpit_holds_the_answer(tmp_path: Path) -> None:
    more = sections(tmp_path)
    more["penalties"] = {"user_address": {"free": 1, "per_minute": 1}, "answer": "tarpit", "tarpit": "300ms"}
    async with running(tmp_path, **more) as rig:
        client = await rig.greeted()
        assert await attempt(client, "alice", "canary-pw-wrong") == WRONG
        started = time.monotonic()
        assert await attempt(client, "alice", "canary-pw-more") == SLOWED
        assert time.monotonic() - started >= 0.299


async def test_a_forgotten_telephone_harms_nobody(tmp_path: Path) -> None:
    async with running(tmp_path, **sections(tmp_path)) as rig:
        telephone = await rig.greeted()
        assert {await attempt(telephone, "alice", "canary-pw-of-last-year") for _ in range(50)} == {WRONG}
        await telephone.send(b"AUTH PLAIN " + plain("Alice", "canary-pw-of-last-year") + b"\r\n")
        await telephone.expect(WRONG)
        await log_in(rig, await rig.greeted())


async def test_guessing_by_scram_is_slowed_down_too_and_learns_nothing_then(tmp_path: Path) -> None:
    async with running(tmp_path, **scram_sections(tmp_path)) as rig:
        client = await rig.greeted()
        answers = []
        for number in range(5):
            answers.append(await scram(client, "SCRAM-SHA-256", "alice", f"canary-pw-{number}", seen=[]))
        assert [answer.rstrip() for answer in answers] == [WRONG] * 3 + [SLOWED] * 2
        seen: list[bytes] = []
        answer = await scram(client, "SCRAM-SHA-256", "alice", "canary-pw-right", seen=seen)
        assert answer.rstrip() == SLOWED
        assert seen == []  # not even the server's signature, which tells that the password is right
        assert rig.metrics.auth_throttled["user_address"] == 3


async def test_a_scram_exchange_that_began_in_time_counts_when_it_turns_out_wrong(tmp_path: Path) -> None:
    """Or many could be begun while there is room for one, and all of them be ended."""
    async with running(tmp_path, **scram_sections(tmp_path)) as rig:
        clients = [await rig.greeted() for _ in range(10)]
        exchanges = [HandMadeClient(user=b"alice") for _ in clients]
        firsts = [
            asyncio.ensure_future(client.command(b"AUTH SCRAM-SHA-256 " + b64(exchange.first)))
            for client, exchange in zip(clients, exchanges, strict=True)
        ]
        waiting = rig.parts.throttle._waiting
        await until(
            lambda: sum(map(len, waiting.values())) + sum(first.done() for first in firsts) == 10,
            "some to wait for others",
        )
        begun = [number for number, first in enumerate(firsts) if first.done() and first.result().startswith(b"+ ")]
        assert 3 <= len(begun) < 8
        for number in begun[1:]:
            final = exchanges[number].final(challenge(firsts[number].result()), b"canary-pw-wrong")
            assert (await clients[number].command(b64(final))).rstrip() == WRONG
        later = [await first for number, first in enumerate(firsts) if number not in begun]
        assert {answer.rstrip() for answer in later} == {SLOWED}
        clients[begun[0]].close()
        await until(lambda: rig.parts.throttle._under_way == {}, "the end of what was begun")
        answer = await clients[begun[1]].command(b"AUTH SCRAM-SHA-256 " + b64(exchanges[0].first))
        assert answer.rstrip() == SLOWED  # all that turned out wrong were counted


def scram_sections(tmp_path: Path) -> dict[str, Any]:
    """Alice has a SCRAM verifier in the users file."""
    key, master, users = tmp_path / "scram.key", tmp_path / "master", tmp_path / "verifiers"
    for file in (key, master):
        file.write_text("canary-pw-0123456789abcdef0123456789abcdef\n")
        file.chmod(0o600)
    users.write_text(f"alice:{scram_verifier(b'canary-pw-right', Mechanism.SCRAM_SHA_256, 4096)}\n")
    users.chmod(0o600)
    return sections(
        tmp_path,
        listener={"authenticate": ["users"], "sasl": ["SCRAM-SHA-256"]},
        users={"file": str(users)},
        scram={"decoy_key": {"file": str(key)}},
        pool={"login": ["forward", "master"], "master": {"user": "popproxy", "password": {"file": str(master)}}},
    )


async def test_passwords_that_only_the_backend_judges_are_counted_too(tmp_path: Path) -> None:
    more = sections(tmp_path, listener={})
    async with running(tmp_path, **more) as rig:
        client = await rig.greeted()
        for number in range(3):
            await client.send(f"USER alice\r\nPASS canary-pw-{number}\r\n")
            await answer_login(await rig.backend.greeted(), final="-ERR [AUTH] no")
            await client.expect("+OK send PASS")
            await client.expect(WRONG)
        assert await attempt(client, "alice", "canary-pw-right") == SLOWED
        assert len(rig.backend.connections) == 3


@pytest.mark.parametrize("final", ["-ERR [SYS/TEMP] later", "-ERR [IN-USE] busy", "-ERR [LOGIN-DELAY] wait", None])
async def test_what_fails_for_us_or_behind_us_is_never_counted(tmp_path: Path, final: str | None) -> None:
    more = sections(tmp_path, listener={})
    async with running(tmp_path, **more) as rig:
        client = await rig.greeted()
        for number in range(8):
            await client.send(f"USER alice\r\nPASS canary-pw-{number}\r\n")
            peer = await rig.backend.greeted()
            if final is None:
                peer.close()
            else:
                await answer_login(peer, final=final)
            await client.expect("+OK send PASS")
            assert (await client.line()).startswith(b"-ERR [")
        assert (await rig.parts.throttle.penalties(everything=True))[1] == 0
        await log_in(rig, client)


async def test_who_goes_away_before_the_verdict_leaves_nothing_under_way(tmp_path: Path) -> None:
    more = sections(tmp_path, listener={})
    async with running(tmp_path, **more) as rig:
        client = await rig.greeted()
        await client.send("USER alice\r\nPASS canary-pw-0\r\n")
        await answer_login(await rig.backend.greeted(), final="-ERR [AUTH] no")
        await client.expect("+OK send PASS")
        await client.expect(WRONG)
        await client.send("USER alice\r\nPASS canary-pw-1\r\n")
        await rig.backend.greeted()
        await until(lambda: rig.parts.throttle._under_way, "the login to be under way")
        client.reset()
        await until(lambda: not rig.service.sessions, "the end")
        assert rig.parts.throttle._under_way == {}


async def test_a_control_character_is_counted_against_the_address(tmp_path: Path) -> None:
    async with running(tmp_path, **sections(tmp_path)) as rig:
        client = await rig.greeted()
        for _ in range(6):
            assert await attempt(client, "alice", "canary-pw\x01") == WRONG
        assert await attempt(client, "alice", "canary-pw-right") == SLOWED


async def test_behind_a_balancer_the_clients_are_counted_and_not_the_balancer(tmp_path: Path) -> None:
    listener = {"authenticate": ["users"], "proxy_protocol": ["127.0.0.0/8"]}
    async with running(tmp_path, **sections(tmp_path, listener=listener)) as rig:

        async def from_(source: str) -> Peer:
            client = await rig.client()
            await client.send(f"PROXY TCP4 {source} 192.0.2.99 5555 110\r\n")
            assert (await client.line()).startswith(b"+OK")
            return client

        guesser = await from_("192.0.2.1")
        for number in range(8):
            await attempt(guesser, "alice", f"canary-pw-{number}")
        assert await attempt(guesser, "alice", "canary-pw-right") == SLOWED
        await log_in(rig, await from_("192.0.2.2"))


# ---- limits of sessions ----


def few_sessions(tmp_path: Path, **more: Any) -> dict[str, Any]:
    limits = {"sessions_per_user": 3, "sessions_per_user_and_address": 2}
    return sections(tmp_path, limits=limits, **more)


@pytest.mark.parametrize("judge", ["users", "passthrough"])
async def test_a_user_has_so_many_sessions_and_no_more(tmp_path: Path, judge: str) -> None:
    async with running(tmp_path, **few_sessions(tmp_path, listener={"authenticate": [judge]})) as rig:

        async def refused(client: Peer, user: str = "alice") -> None:
            await client.send(f"USER {user}\r\nPASS canary-pw-right\r\n")
            if judge == "passthrough":  # a password must be right before the limit is spoken of
                await answer_login(await rig.backend.greeted())
            await client.expect("+OK send PASS")
            await client.expect(GREEDY)

        first, second = await rig.greeted(), await rig.greeted()
        await log_in(rig, first)
        behind = await log_in(rig, second)
        third = await rig.greeted()
        await refused(third)
        elsewhere = await rig.greeted(source="127.0.0.2")
        await log_in(rig, elsewhere)
        await refused(await rig.greeted(source="127.0.0.3"), "Alice")
        await log_in(rig, await rig.greeted(), "bob", "canary-pw-bob")  # who has nothing to do with it
        second.close()
        assert await behind.rest() == b""
        await until(lambda: len(rig.audit("session_end")) == 1, "the end of one")
        await log_in(rig, third)
        reasons = [record.get("event.reason") for record in rig.audit("auth")]
        assert reasons.count("session_limit") == 2
        assert {record["user.name"].lower() for record in rig.audit("auth")} == {"alice", "bob"}
        assert rig.metrics.response_codes["IN-USE"] == 2
    assert rig.parts.state._leased == {}


async def test_wrong_passwords_take_no_session_from_the_user(tmp_path: Path) -> None:
    async with running(tmp_path, **few_sessions(tmp_path, listener={"authenticate": ["passthrough"]})) as rig:
        guessers = [await rig.greeted() for _ in range(3)]
        held = []
        for guesser in guessers:
            await guesser.send("USER alice\r\nPASS canary-pw-guess\r\n")
            held.append(await rig.backend.greeted())  # the backend takes its time
        await log_in(rig, await rig.greeted())
        for guesser, backend in zip(guessers, held, strict=True):
            await answer_login(backend, final="-ERR [AUTH] no")
            await guesser.expect("+OK send PASS")
            await guesser.expect(WRONG)


@pytest.mark.parametrize(
    "end", ["quit", "client", "reset", "backend", "refused", "unreachable", "greeting", "shutdown"]
)
async def test_whatever_ends_a_session_gives_its_lease_back(tmp_path: Path, end: str) -> None:
    async with running(tmp_path, **few_sessions(tmp_path)) as rig:
        if end == "unreachable":
            rig.expected_errors.append("backend failed")
        for _ in range(5):  # more than the limit
            client = await rig.greeted()
            await client.send("USER alice\r\nPASS canary-pw-right\r\n")
            peer = await rig.backend.accept()
            if end == "unreachable":
                peer.close()
            elif end == "greeting":
                client.close()
            else:
                await peer.send("+OK ready\r\n")
                await answer_login(peer, final="-ERR [SYS/TEMP] later" if end == "refused" else "+OK")
            await client.expect("+OK send PASS") if end != "greeting" else None
            match end:
                case "refused" | "unreachable":
                    assert (await client.line()).startswith(b"-ERR [SYS/TEMP]")
                    client.close()
                case "quit":
                    await client.expect("+OK Logged in")
                    await client.send("QUIT\r\n")
                    assert await peer.line() == b"QUIT\r\n"
                    await peer.send("+OK\r\n")
                    await client.rest()
                case "client":
                    client.close()
                case "reset":
                    client.reset()
                case "backend":
                    peer.reset()
                    await client.send("NOOP\r\n")
                    await client.rest()
                case "shutdown":
                    await client.expect("+OK Logged in")
                    for session in list(rig.service.sessions):
                        session.shut_down()
            await until(lambda: not rig.service.sessions, "the end of the session")
            assert rig.parts.state._leased == {}


# ---- one answer, one duration ----


async def test_a_slow_judge_makes_the_quick_one_wait(tmp_path: Path) -> None:
    """Users of the file are judged at once, others by a backend that waits itself, longer than our delay."""
    more = sections(tmp_path, listener={"authenticate": ["users", "passthrough"]})
    more["authentication"]["failure_delay"] = "200ms"
    async with running(tmp_path, **more) as rig:

        async def wrong(user: str, number: int) -> float:
            client = await rig.greeted()
            started = time.monotonic()
            await client.send(f"USER {user}\r\nPASS canary-pw-{number}\r\n")
            if user == "carol":
                peer = await rig.backend.greeted()
                await asyncio.sleep(slowly)
                await answer_login(peer, final="-ERR [AUTH] no")
            await client.expect("+OK send PASS")
            await client.expect(WRONG)
            client.close()
            return time.monotonic() - started

        slowly = await wrong("alice", 0) + 0.3  # nobody has been slow yet
        assert await wrong("carol", 1) >= slowly
        assert await wrong("alice", 1) >= slowly


@pytest.mark.parametrize("judge", ["users", "passthrough"])
async def test_nobody_logs_in_more_often_than_the_delay_allows(tmp_path: Path, judge: str) -> None:
    more = sections(tmp_path, listener={"authenticate": [judge]}, limits={"login_delay": "90s"})
    async with running(tmp_path, **more) as rig:
        first = await rig.greeted()
        await first.send("CAPA\r\nUSER alice\r\nPASS canary-pw-right\r\n")
        announced = [await first.line()]
        while announced[-1] != b".\r\n":
            announced.append(await first.line())
        assert b"LOGIN-DELAY 90\r\n" in announced
        await first.expect("+OK send PASS")
        await answer_login(await rig.backend.greeted(), final="-ERR [SYS/TEMP] later")
        assert b"[SYS/TEMP]" in await first.line()  # nothing has come of that one
        await log_in(rig, first)
        again = await rig.greeted()
        await again.send("USER ALICE\r\nPASS canary-pw-right\r\n")
        await again.expect("+OK send PASS")
        if judge == "passthrough":
            await answer_login(await rig.backend.greeted())
        await again.expect("-ERR [LOGIN-DELAY] too soon after the last login")
        await log_in(rig, again, "bob", "canary-pw-bob")
        assert [record["event.reason"] for record in rig.audit("auth") if "event.reason" in record][-1:] == [
            "login_delay"
        ]
        assert rig.metrics.response_codes["LOGIN-DELAY"] == 1
