"""CRAM-MD5 and SCRAM through the whole proxy: what is offered where, who gets in, and what strangers can learn."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from popproxy.auth.hashes import scram_verifier
from popproxy.types import Mechanism, Secret
from popproxy.vault.format import generate_key
from popproxy.vault.store import Vault
from tests.peers.certs import CertificateFiles
from tests.peers.scram_client import HandMadeClient
from tests.session.rig import Peer, answer_login, client_context, running
from tests.session.sasl_client import b64, capabilities, challenge, cram_md5, scram

WRONG = b"-ERR [AUTH] authentication failed"
LATER = b"-ERR [SYS/TEMP] temporary problem, try again later"
ALL = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5"]
PASSWORD = "canary-pw-alice"


def sections(directory: Path, certificate: CertificateFiles | None = None, **listener: Any) -> dict[str, Any]:
    """A listener that offers everything, with a vault that has alice in clear, bob as a verifier, and a user "old"."""
    key = directory / "vault.key"
    key.write_text(generate_key())
    key.chmod(0o600)
    vault = Vault.create(directory / "vault", Secret(key.read_text()))
    vault.set("alice", Secret(PASSWORD))
    vault.change({"bob": lambda record: record.with_verifiers(Secret(PASSWORD))})
    vault.change({"old": lambda record: record.with_rpop(Secret("hash"))})
    sasl = ALL if certificate else [name for name in ALL if not name.endswith("PLUS")]
    found: dict[str, Any] = {
        "listener": {"sasl": sasl, **({"tls": "stls"} if certificate else {}), **listener},
        "vault": {"file": str(directory / "vault"), "key": {"file": str(key)}},
        "pool": {
            "login": ["forward", "master"],
            "master": {"user": "m", "password": {"file": str(_master(directory))}},
        },
        "authentication": {"failure_delay": "10ms", "tries": 100},
    }
    if certificate:
        found["tls"] = {"certificates": [{"cert": str(certificate.cert), "key": str(certificate.key)}]}
    return found


def _master(directory: Path) -> Path:
    path = directory / "master"
    path.write_text("canary-pw-master")
    path.chmod(0o600)
    return path


def end_point(certificate: CertificateFiles) -> bytes:
    return x509.load_pem_x509_certificate(certificate.cert.read_bytes()).fingerprint(hashes.SHA256())


async def stls(client: Peer) -> None:
    assert (await client.command("STLS")).startswith(b"+OK")
    await client.handshake(client_context())


Way = Callable[[Peer, str, str], Coroutine[Any, Any, bytes]]


def way(mechanism: str) -> Way:
    if mechanism == "CRAM-MD5":
        return cram_md5
    return lambda client, user, password: scram(client, mechanism, user, password, seen=[])


# ---- what is offered ----


async def test_capa_says_what_works_now(tmp_path: Path, server_certificate: CertificateFiles) -> None:
    async with running(tmp_path, **sections(tmp_path, server_certificate, cleartext_networks=[])) as rig:
        client = await rig.greeted()
        assert (await capabilities(client))["SASL"] == ["SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5"]
        assert (await client.command("AUTH SCRAM-SHA-256-PLUS")).startswith(b"-ERR ")
        await stls(client)
        assert (await capabilities(client))["SASL"] == [*ALL, "PLAIN", "LOGIN"]


async def test_what_is_not_offered_is_refused(tmp_path: Path) -> None:
    some = sections(tmp_path)
    some["listener"]["sasl"] = ["SCRAM-SHA-1"]
    async with running(tmp_path, **some) as rig:
        client = await rig.greeted()
        assert (await capabilities(client))["SASL"] == ["SCRAM-SHA-1", "PLAIN", "LOGIN"]
        for name in ("SCRAM-SHA-256", "CRAM-MD5", "SCRAM-SHA-1-PLUS"):
            assert await client.command(f"AUTH {name}") == b"-ERR this mechanism is not offered here"


# ---- who gets in ----


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5"])
async def test_login(tmp_path: Path, mechanism: str) -> None:
    async with running(tmp_path, **sections(tmp_path)) as rig:
        client = await rig.greeted()
        trying = asyncio.create_task(way(mechanism)(client, "Alice", PASSWORD))
        lines = await answer_login(await rig.backend.greeted())
        assert lines[-2:] == [b"USER alice*m\r\n", b"PASS canary-pw-master\r\n"]
        assert await trying == b"+OK Logged in"
        (auth,), (login,) = rig.audit("auth"), rig.audit("login")
        assert (auth["event.outcome"], auth["auth.mechanism"]) == ("success", mechanism)
        assert (login["user.name"], login["user.authcid"], login["auth.mechanism"]) == ("alice", "Alice", mechanism)
        assert rig.metrics.auth_attempts[(mechanism, "success", "none")] == 1


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS"])
async def test_login_bound_to_tls(tmp_path: Path, server_certificate: CertificateFiles, mechanism: str) -> None:
    async with running(tmp_path, **sections(tmp_path, server_certificate)) as rig:
        client = await rig.greeted()
        await stls(client)
        trying = asyncio.create_task(scram(client, mechanism, "bob", PASSWORD, end_point(server_certificate), seen=[]))
        await answer_login(await rig.backend.greeted())
        assert await trying == b"+OK Logged in"
        assert rig.audit("login")[0]["auth.mechanism"] == mechanism


async def test_client_behind_somebody_elses_tls_is_refused(
    tmp_path: Path, server_certificate: CertificateFiles
) -> None:
    async with running(tmp_path, **sections(tmp_path, server_certificate)) as rig:
        client = await rig.greeted()
        await stls(client)
        seen: list[bytes] = []
        with pytest.raises(Exception, match="channel-bindings-dont-match"):
            await scram(client, "SCRAM-SHA-256-PLUS", "alice", PASSWORD, b"x" * 32, seen=seen)
        assert await client.command(b"") == WRONG
        assert rig.audit("auth")[0]["event.reason"] == "channel_binding"
        assert rig.backend.connections == []


async def test_client_that_was_told_there_is_no_plus_is_refused(
    tmp_path: Path, server_certificate: CertificateFiles
) -> None:
    async with running(tmp_path, **sections(tmp_path, server_certificate)) as rig:
        client = await rig.greeted()
        await stls(client)
        answer = await client.command(b"AUTH SCRAM-SHA-256 eSwsbj1hbGljZSxyPWFiYw==")  # y,,n=alice,r=abc
        assert answer == b"+ ZT1zZXJ2ZXItZG9lcy1zdXBwb3J0LWNoYW5uZWwtYmluZGluZw=="
        assert await client.command(b"") == WRONG
        assert rig.audit("auth")[0]["event.reason"] == "channel_binding"


async def test_users_file_holds_verifiers_too(tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"alice:{scram_verifier(PASSWORD.encode(), Mechanism.SCRAM_SHA_256, 4096)}\n")
    (tmp_path / "scram.key").write_text("0123456789abcdef")
    (tmp_path / "scram.key").chmod(0o600)
    some = sections(tmp_path, authenticate=["users"])
    del some["vault"]
    some["listener"]["sasl"] = ["SCRAM-SHA-256"]
    some |= {"users": {"file": str(tmp_path / "users")}, "scram": {"decoy_key": {"file": str(tmp_path / "scram.key")}}}
    async with running(tmp_path, **some) as rig:
        client = await rig.greeted()
        trying = asyncio.create_task(way("SCRAM-SHA-256")(client, "alice", PASSWORD))
        await answer_login(await rig.backend.greeted())
        assert await trying == b"+OK Logged in"


# ---- who does not ----


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5"])
async def test_every_failure_looks_the_same(tmp_path: Path, mechanism: str) -> None:
    """Wrong password, unknown user, no such record, disabled account, a name that cannot be."""
    (tmp_path / "users").write_text("bob:!\n")
    some = sections(tmp_path) | {"users": {"file": str(tmp_path / "users")}}
    some["listener"]["authenticate"] = ["users"]
    async with running(tmp_path, **some) as rig:
        client = await rig.greeted()
        for user, password in [
            ("alice", "x"),
            ("nobody", PASSWORD),
            ("old", PASSWORD),
            ("bob", PASSWORD),
            ("z" * 300, "x"),
        ]:
            assert await way(mechanism)(client, user, password) == WRONG
        assert rig.backend.connections == []
        records = rig.audit("auth")
        assert {record["event.reason"] for record in records} <= {"bad_credentials", "malformed"}
        assert not any("user.name" in record for record in records)


async def test_first_message_tells_nobody_who_exists(tmp_path: Path) -> None:
    """RFC 5802 section 9: salts and iteration counts of users who do not exist are made up, and stay the same."""
    some = sections(tmp_path)
    first: dict[str, set[str]] = {}
    for _ in range(2):  # the second time it is another process, for all that matters
        async with running(tmp_path, **some) as rig:
            client = await rig.greeted()
            for user in ("alice", "Alice", "bob", "old", "nobody", "NoBody", "another"):
                seen: list[bytes] = []
                assert await scram(client, "SCRAM-SHA-256", user, "wrong", seen=seen) == WRONG
                first.setdefault(user, set()).add(seen[0].decode().partition(",")[2])
    assert all(len(messages) == 1 for messages in first.values()), "a salt has changed"
    assert first["alice"] == first["Alice"]
    assert first["nobody"] == first["NoBody"]
    assert len({next(iter(messages)) for messages in first.values()}) == 5
    shape = re.compile(r"s=[A-Za-z0-9+/]{22}==,i=4096")
    assert all(shape.fullmatch(next(iter(messages))) for messages in first.values())


async def test_vault_that_cannot_be_read_is_no_wrong_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, **sections(tmp_path)) as rig:
        rig.expected_errors += ["altered"]
        entries = rig.parts._vault._file.value[0].entries
        monkeypatch.setitem(entries, "alice", replace(entries["bob"], user="alice"))
        client = await rig.greeted()
        for mechanism in ("SCRAM-SHA-256", "CRAM-MD5"):
            assert await way(mechanism)(client, "alice", PASSWORD) == LATER
        assert {record["event.outcome"] for record in rig.audit("auth")} == {"unknown"}


async def test_control_octets_never_reach_a_backend(tmp_path: Path) -> None:
    some = sections(tmp_path) | {"limits": {"bad_commands": 1000}}
    async with running(tmp_path, **some) as rig:
        client = await rig.greeted()
        for octet in (*range(32), 127):
            name = f"ali{chr(octet)}ce"
            assert await way("CRAM-MD5")(client, name, PASSWORD) == WRONG
            answer = await client.command(b"AUTH SCRAM-SHA-1 " + b64(f"n,,n={name},r=abc"))
            assert answer.startswith(b"+ ZT1")  # e=
            assert (await client.command("")).startswith(b"-ERR ")
            answer = await client.command(b"AUTH SCRAM-SHA-1 " + b64(f"n,a={name},n=alice,r=abc"))
            if answer.startswith(b"+ ZT1"):
                assert (await client.command("")).startswith(b"-ERR ")
            else:
                assert (await client.command("*")).startswith(b"-ERR ")
        with pytest.raises(TimeoutError):
            await rig.backend.accept(0.05)


@pytest.mark.parametrize(
    ("authzid", "answer"), [(b"alice", b"+OK Logged in"), (b"ALICE", b"+OK Logged in"), (b"bob", WRONG)]
)
async def test_nobody_may_act_as_somebody_else(tmp_path: Path, authzid: bytes, answer: bytes) -> None:
    async with running(tmp_path, **sections(tmp_path)) as rig:
        client, exchange = await rig.greeted(), HandMadeClient(header=b"n,a=" + authzid + b",", user=b"alice")
        first = challenge(await client.command(b"AUTH SCRAM-SHA-256 " + b64(exchange.first)))
        signature = challenge(await client.command(b64(exchange.final(first, PASSWORD.encode()))))
        assert signature.startswith(b"v=")
        trying = asyncio.create_task(client.command(b""))
        if answer != WRONG:
            await answer_login(await rig.backend.greeted())
        assert await trying == answer
        assert answer != WRONG or rig.audit("auth")[0]["event.reason"] == "authzid"
