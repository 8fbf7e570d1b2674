"""Logins: who is told what, how long it takes, and what never reaches a backend."""

from __future__ import annotations

import asyncio
import base64
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from popproxy.auth.hashes import verify
from popproxy.types import Secret
from popproxy.vault.format import generate_key
from popproxy.vault.store import Vault
from tests.session.rig import PATIENCE, Peer, Transcript, answer_login, plain, running, until, users_file

WRONG = b"-ERR [AUTH] authentication failed"
LATER = b"-ERR [SYS/TEMP] temporary problem, try again later"


async def attempt(client: Peer, user: bytes | str, password: bytes | str, how: str = "USER") -> bytes:
    """Log in one way; the last answer."""
    octets = [part.encode() if isinstance(part, str) else part for part in (user, password)]
    if how == "PLAIN":
        return await client.command(b"AUTH PLAIN " + plain(user, password))
    if how == "LOGIN":
        assert (await client.command("AUTH LOGIN")).startswith(b"+ ")
        answer = await client.command(base64.b64encode(octets[0]))
        return await client.command(base64.b64encode(octets[1])) if answer.startswith(b"+ ") else answer
    answer = await client.command(b"USER " + octets[0])
    return await client.command(b"PASS " + octets[1]) if answer.startswith(b"+OK") else answer


# ---- wrong ----


@pytest.mark.parametrize("how", ["USER", "PLAIN", "LOGIN"])
async def test_unknown_user_and_wrong_password_cannot_be_told_apart(tmp_path: Path, how: str) -> None:
    sections: dict[str, Any] = {
        "listener": {"authenticate": ["users"]},
        "users": users_file(tmp_path, alice="canary-pw-right"),
        "authentication": {"failure_delay": "80ms", "tries": 100},
    }
    async with running(tmp_path, **sections) as rig:
        client = await rig.greeted()
        for user, password in [
            ("alice", "canary-pw-wrong"),
            ("nobody", "canary-pw-wrong"),
            ("alice", "x" * 300),
            ("a" * 256, "canary-pw-wrong"),
        ]:
            started = time.monotonic()
            assert await attempt(client, user, password, how) == WRONG
            assert time.monotonic() - started >= 0.078, "answered before its time"
        assert rig.backend.connections == []
        assert {record["event.outcome"] for record in rig.audit("auth")} == {"failure"}
        assert "nobody" not in str(rig.audit()), "the name of an unknown user may be a password"


@pytest.mark.parametrize("field", ["user", "password", "authzid"])
async def test_control_octets_never_reach_a_backend(tmp_path: Path, field: str) -> None:
    octets = [bytes([octet]) for octet in (*range(32), 127)]
    async with running(
        tmp_path, authentication={"failure_delay": "0s", "tries": 100}, limits={"bad_commands": 1000}
    ) as rig:
        for octet in octets:
            user = b"ali" + octet + b"ce" if field == "user" else b"alice"
            password = b"canary-pw" + octet + b"x" if field == "password" else b"canary-pw"
            authzid = b"ali" + octet + b"ce" if field == "authzid" else b""
            client = await rig.greeted()
            answer = await client.command(b"AUTH PLAIN " + plain(user, password, authzid))
            assert answer.startswith(b"-ERR"), answer
            if octet != b"\0" or field == "password":
                assert answer == WRONG
            if field != "authzid":
                answer = await attempt(client, user, password, "LOGIN")
                assert answer == WRONG
                if octet != b"\n":
                    answer = await attempt(client, user, password, "USER")
                    assert answer == WRONG
            client.close()
        await until(lambda: not rig.service.sessions, "the end")
        assert rig.metrics.auth_attempts[("PLAIN", "failure", "control_character")] >= 31
        with pytest.raises(TimeoutError):
            await rig.backend.accept(0.05)


async def test_name_and_password_split_by_lf_open_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client = await rig.greeted()
        await client.send(b"USER alice\nDELE 1\r\nPASS canary-pw\nDELE 1\r\n")
        assert [await client.line() for _ in range(4)] == [
            b"+OK send PASS\r\n",
            b"-ERR log in first\r\n",
            b"-ERR send USER first\r\n",
            b"-ERR log in first\r\n",
        ]
        with pytest.raises(TimeoutError):
            await rig.backend.accept(0.05)


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (plain("alice", ""), WRONG),
        (plain("", "canary-pw"), WRONG),
        (plain("alice", "canary-pw", "bob"), WRONG),
        (plain(b"\xff\xfe", "canary-pw"), None),
        (base64.b64encode(b"alice"), None),
        (b"!!!!", None),
    ],
)
async def test_credentials_that_cannot_be(tmp_path: Path, message: bytes, answer: bytes | None) -> None:
    async with running(tmp_path) as rig:
        client = await rig.greeted()
        said = await client.command(b"AUTH PLAIN " + message)
        assert said.startswith(b"-ERR") if answer is None else said == answer
        with pytest.raises(TimeoutError):
            await rig.backend.accept(0.05)


async def test_own_name_as_authzid_is_fine(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client = await rig.greeted()
        await client.send(b"AUTH PLAIN " + plain("alice", "canary-pw-alice", "Alice") + b"\r\n")
        await rig.backend.logged_in()
        await client.expect("+OK Logged in")


async def test_tries_are_limited_and_failures_of_others_do_not_count(tmp_path: Path) -> None:
    async with running(tmp_path, authentication={"tries": 2, "failure_delay": "0s"}) as rig:
        client = await rig.greeted()
        for final, answer in [
            ("-ERR [IN-USE] busy", b"-ERR [IN-USE] maildrop is in use"),
            ("-ERR [in-use] busy", b"-ERR [IN-USE] maildrop is in use"),
            ("-ERR [LOGIN-DELAY] wait", b"-ERR [LOGIN-DELAY] too soon after the last login"),
            ("-ERR [SYS/TEMP] later", LATER),
            ("-ERR [SYS/TEMP/DISK] later", LATER),
            ("-ERR [SYS/PERM] never", b"-ERR [SYS/PERM] your mail server refuses"),
            ("-ERR [SYS/TEMPORAL] what", WRONG),
            ("-ERR no such user <secret text>", WRONG),
        ]:
            trying = asyncio.create_task(attempt(client, "alice", "canary-pw-x", "PLAIN"))
            await answer_login(await rig.backend.greeted(), final=final)
            assert await trying == answer
        assert await client.rest() == b""
        await rig.ends("too_many_failures")


async def test_password_only_a_backend_can_judge_opens_no_vault(tmp_path: Path) -> None:
    vault = stored(tmp_path, alice="canary-pw-stored")
    async with running(tmp_path, vault=vault, pool={"login": ["stored", "apop", "forward"]}) as rig:
        client = await rig.greeted()
        trying = asyncio.create_task(attempt(client, "alice", "canary-pw-guess"))
        lines = await answer_login(await rig.backend.greeted(), final="-ERR no")
        assert b"PASS canary-pw-guess\r\n" in lines
        assert await trying == WRONG


def stored(directory: Path, **secrets: str) -> dict[str, Any]:
    """A vault with these secrets; its section of the configuration."""
    key = directory / "vault.key"
    raw = generate_key()
    key.write_text(raw)
    key.chmod(0o600)
    vault = Vault.create(directory / "vault", Secret(raw))
    for user, secret in secrets.items():
        vault.set(user, Secret(secret))
    return {"file": str(directory / "vault"), "key": {"file": str(key)}}


@pytest.mark.parametrize(
    ("strategies", "greeting", "expected"),
    [
        (["stored"], "+OK ready", "PASS canary-pw-stored"),
        (["stored", "forward"], "+OK ready <1.2@x>", "PASS canary-pw-stored"),
        (["forward", "stored"], "+OK ready", "PASS canary-pw-own"),
        (["apop", "stored"], "+OK ready <1.2@x>", "APOP alice "),
        (["apop", "stored"], "+OK ready", "PASS canary-pw-stored"),
    ],
)
async def test_strategies_are_used_in_their_order(
    tmp_path: Path, strategies: list[str], greeting: str, expected: str
) -> None:
    sections: dict[str, Any] = {
        "listener": {"authenticate": ["users"]},
        "users": users_file(tmp_path, alice="canary-pw-own"),
        "vault": stored(tmp_path, alice="canary-pw-stored"),
        "pool": {"login": strategies},
    }
    async with running(tmp_path, **sections) as rig:
        client = await rig.greeted()
        trying = asyncio.create_task(attempt(client, "alice", "canary-pw-own"))
        peer = await rig.backend.accept()
        await peer.send(f"{greeting}\r\n")
        lines = await answer_login(peer)
        assert lines[-1].decode().startswith(expected)
        assert await trying == b"+OK Logged in"


async def test_apop_only_and_a_backend_without_timestamp(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "listener": {"authenticate": ["users"]},
        "users": users_file(tmp_path, alice="canary-pw-own"),
        "vault": stored(tmp_path, alice="canary-pw-stored"),
        "pool": {"login": ["apop"]},
    }
    async with running(tmp_path, **sections) as rig:
        client = await rig.greeted()
        trying = asyncio.create_task(attempt(client, "alice", "canary-pw-own"))
        peer = await rig.backend.greeted()
        assert await peer.line() == b"CAPA\r\n"
        await peer.send("-ERR\r\n")
        assert await trying == b"-ERR [SYS/PERM] your mail server refuses"
        assert await peer.rest() == b""


async def test_backend_that_refuses_a_proven_user_is_no_wrong_password(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "listener": {"authenticate": ["users"]},
        "users": users_file(tmp_path, alice="canary-pw-right"),
    }
    async with running(tmp_path, **sections) as rig:
        rig.expected_errors.append("the backend refuses a password that is right here")
        client = await rig.greeted()
        trying = asyncio.create_task(attempt(client, "alice", "canary-pw-right"))
        await answer_login(await rig.backend.greeted(), final="-ERR [AUTH] no")
        assert await trying == b"-ERR [SYS/PERM] your mail server refuses your password, tell your administrator"


@pytest.mark.parametrize("strategy", ["stored", "master"])
async def test_wrong_credential_of_the_proxy_is_an_alarm(tmp_path: Path, strategy: str) -> None:
    """What stands behind it in the list is not tried: somebody must notice."""
    (tmp_path / "master").write_text("canary-pw-master")
    (tmp_path / "master").chmod(0o600)
    sections: dict[str, Any] = {
        "listener": {"authenticate": ["users"]},
        "users": users_file(tmp_path, alice="canary-pw-right"),
        "vault": stored(tmp_path, alice="canary-pw-stored"),
        "pool": {
            "login": [strategy, "forward"], "master": {"user": "admin", "password": {"file": str(tmp_path / "master")}}
        },
    }  # fmt: skip
    async with running(tmp_path, **sections) as rig:
        rig.expected_errors.append("the backend refuses the proxy's credential")
        client = await rig.greeted()
        trying = asyncio.create_task(attempt(client, "alice", "canary-pw-right"))
        lines = await answer_login(await rig.backend.greeted(), final="-ERR [AUTH] no")
        assert f"PASS canary-pw-{strategy}\r\n".encode() in lines
        assert await trying == b"-ERR [SYS/PERM] your mail server refuses the proxy, tell your administrator"
        with pytest.raises(TimeoutError):
            await rig.backend.accept(0.05)
        assert rig.metrics.backend_credentials_refused[strategy] == 1
        assert rig.metrics.auth_attempts[("USER", "failure", "backend_refused_proxy")] == 1
        (record,) = rig.audit("backend_login")
        assert (record["event.reason"], record["popproxy.strategy"]) == ("proxy_credential", strategy)


async def test_full_queue_for_hashes_is_no_wrong_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def slowly(password: bytes, stored: str) -> bool:
        go_on.wait(PATIENCE)
        return verify(password, stored)

    monkeypatch.setattr("popproxy.auth.users_file.verify", slowly)
    sections: dict[str, Any] = {
        "listener": {"authenticate": ["users"]},
        "users": users_file(tmp_path, alice="canary-pw-right"),
        "authentication": {"hash_threads": 1, "hash_queue": 1, "failure_delay": "0s"},
    }
    async with running(tmp_path, **sections) as rig:
        rig.expected_errors.append("cannot authenticate")
        clients = [await rig.greeted() for _ in range(8)]
        trying = [asyncio.create_task(attempt(client, "alice", "canary-pw-wrong")) for client in clients]
        await until(lambda: sum(one.done() for one in trying) == 6, "those for whom there is no room to be told so")
        go_on.set()
        answers = await asyncio.gather(*trying)
        assert sorted(answers) == [WRONG] * 2 + [LATER] * 6
        assert rig.metrics.auth_attempts[("USER", "error", "unavailable")] == 6


# ---- no route ----


async def test_user_without_a_route(tmp_path: Path) -> None:
    pools = {"other": {"servers": ["127.0.0.1:1"], "tls": "none", "allow_cleartext": True}}
    routing = {"rules": [{"user": "alice", "pool": "main"}]}
    async with running(tmp_path, routing=routing, more_pools=pools) as rig:
        client = await rig.greeted()
        assert await attempt(client, "bob", "canary-pw-x") == WRONG
    (tmp_path / "second").mkdir()
    sections: dict[str, Any] = {
        "listener": {"authenticate": ["users"]},
        "users": users_file(tmp_path, bob="canary-pw-right"),
    }
    async with running(tmp_path / "second", routing=routing, more_pools=pools, **sections) as rig:
        rig.expected_errors.append("no rule leads this user to a pool")
        client = await rig.greeted()
        assert await attempt(client, "bob", "canary-pw-wrong") == WRONG
        assert await attempt(client, "bob", "canary-pw-right") == b"-ERR [SYS/PERM] no mail server for you"


# ---- the audit log ----


@pytest.fixture
def small_files() -> Any:
    """No file may grow beyond what it has: what a full disk looks like, for this process alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(octets: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if octets is None else octets, before[1]))

    yield limit
    limit(None)
    signal.signal(signal.SIGXFSZ, old)


@pytest.mark.parametrize("on_error", ["closed", "open"])
async def test_full_disk_under_the_audit_log(tmp_path: Path, small_files: Any, on_error: str) -> None:
    async with running(tmp_path, audit={"file": str(tmp_path / "audit.jsonl"), "on_error": on_error}) as rig:
        rig.expected_errors.append("the audit log cannot be written")
        client, backend = await rig.logged_in()
        rig.parts.audit.flush()
        small_files(os.stat(tmp_path / "audit.jsonl").st_size)
        late = await rig.greeted()
        trying = asyncio.create_task(attempt(late, "alice", "canary-pw-alice"))
        late_backend = await rig.backend.logged_in()
        if on_error == "closed":
            assert await trying == LATER
            assert await late.rest() == b""
            assert await late_backend.rest() == b""
            assert rig.service.reasons() == ["the audit log cannot be written, logins are refused"]
        else:
            assert await trying == b"+OK Logged in"
            late.reset()
        await Transcript(client, backend).play("""
            C: RETR 1
            B: RETR 1
            R: +OK
            R: text
            R: .
            S: +OK
            S: text
            S: .
            C: QUIT
            B: QUIT
            R: +OK bye
            S: +OK bye
        """)
        await until(lambda: not rig.service.sessions, "all ends")
        small_files(None)
        rig.parts.audit.flush()
        if on_error == "closed":
            again, _ = await rig.logged_in()
            again.reset()
        await until(lambda: not rig.service.sessions, "all ends")
        reasons = [record["event.reason"] for record in rig.audit("session_end")]
        assert sorted(reasons[:2]) == sorted(["audit" if on_error == "closed" else "client_lost", "logout"])


async def test_audit_record_is_written_before_the_client_knows(tmp_path: Path) -> None:
    async with running(tmp_path, audit={"file": str(tmp_path / "audit.jsonl"), "flush": "1h"}) as rig:
        client, backend = await rig.logged_in()
        written = (tmp_path / "audit.jsonl").read_text()
        assert '"event.action":"login"' in written
        await Transcript(client, backend).play("C: QUIT\nB: QUIT\nR: +OK bye\nS: +OK bye")
        assert '"event.action":"update"' in (tmp_path / "audit.jsonl").read_text()
