"""Mechanisms that are given up, through the whole proxy: before the day, after it, and for some users only."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from popproxy.sasl.scram_verifier import make_verifier
from popproxy.types import Mechanism
from tests.peers.canaries import canary
from tests.peers.certs import CertificateFiles
from tests.session.rig import Peer, Rig, answer_login, client_context, plain, running
from tests.session.sasl_client import b64, capabilities, challenge, scram

WRONG = b"-ERR [AUTH] authentication failed"
PASSWORD = canary("policy")
TODAY = date.today()
SOON, PAST = str(TODAY + timedelta(days=20)), str(TODAY - timedelta(days=3))


def sections(directory: Path, *policy: dict[str, Any], **listener: Any) -> dict[str, Any]:
    salt = b"policypolicy"
    verifiers = [str(make_verifier(Mechanism.SCRAM_SHA_256, PASSWORD.encode(), salt, 4096)) for _ in range(2)]
    (directory / "users").write_text(f"alice:{verifiers[0]}\nbob:{verifiers[1]}\n")
    for name in ("master", "scram.key"):
        (directory / name).write_text("canary-pw-master-canary-pw-master")
        (directory / name).chmod(0o600)
    return {
        "listener": {"authenticate": ["users"], "sasl": ["SCRAM-SHA-256"], **listener},
        "users": {"file": str(directory / "users")},
        "scram": {"decoy_key": {"file": str(directory / "scram.key")}},
        "pool": {"login": ["master"], "master": {"user": "m", "password": {"file": str(directory / "master")}}},
        "policy": list(policy),
    }


async def log_in(rig: Rig, user: str, client: Peer | None = None) -> None:
    client = client or await rig.greeted()
    await client.send(b"AUTH PLAIN " + plain(user, PASSWORD) + b"\r\n")
    await answer_login(await rig.backend.greeted())
    await client.expect("+OK Logged in")


async def test_what_has_ended_for_everybody_is_not_there(tmp_path: Path) -> None:
    rule = {"mechanisms": ["USER", "PLAIN"], "until": PAST, "except_networks": ["127.0.0.2/32"]}
    async with running(tmp_path, **sections(tmp_path, rule)) as rig:
        client = await rig.greeted()
        found = await capabilities(client)
        assert "USER" not in found
        assert found["SASL"] == ["SCRAM-SHA-256", "LOGIN"]
        assert (await client.command("USER alice")).startswith(b"-ERR passwords are not taken here")
        assert (await client.command(b"AUTH PLAIN " + plain("alice", PASSWORD))).startswith(b"-ERR ")
        assert rig.backend.connections == []
        inside = await rig.greeted(source="127.0.0.2")
        assert (await capabilities(inside))["SASL"] == ["SCRAM-SHA-256", "PLAIN", "LOGIN"]
        await log_in(rig, "alice", inside)


async def test_apop_that_has_ended_has_no_timestamp(tmp_path: Path) -> None:
    key = tmp_path / "vault.key"
    from popproxy.types import Secret
    from popproxy.vault.format import generate_key
    from popproxy.vault.store import Vault

    key.write_text(generate_key())
    key.chmod(0o600)
    Vault.create(tmp_path / "vault", Secret(key.read_text())).set("alice", Secret(PASSWORD))
    vault = {"file": str(tmp_path / "vault"), "key": {"file": str(key)}}
    for until, there in ((SOON, True), (PAST, False)):
        some = sections(tmp_path, {"mechanisms": ["APOP"], "until": until}, apop=True)
        async with running(tmp_path, **some, vault=vault) as rig:
            client = await rig.client()
            stamp = re.search(rb"<[^>]+>", await client.line())
            assert (stamp is not None) is there
            if stamp is None:
                assert (await client.command(b"APOP alice " + b"0" * 32)).startswith(b"-ERR APOP is not offered")
                continue
            digest = hashlib.md5(stamp[0] + PASSWORD.encode()).hexdigest()
            await client.send(f"APOP alice {digest}\r\n")
            await answer_login(await rig.backend.greeted())
            await client.expect("+OK Logged in")
            assert rig.audit("login")[0]["popproxy.mechanism_until"] == SOON


async def test_what_has_ended_for_some_is_refused_to_them_unseen_and_counts_against_nobody(tmp_path: Path) -> None:
    rule = {"mechanisms": ["PLAIN", "USER"], "users": ["Alice"]}
    some = sections(tmp_path, rule) | {"authentication": {"failure_delay": "10ms", "tries": 100}}
    async with running(tmp_path, **some) as rig:
        client = await rig.greeted()
        assert "PLAIN" in (await capabilities(client))["SASL"]
        for password in [PASSWORD, *(canary() for _ in range(12))]:  # more than are free
            assert await client.command(b"AUTH PLAIN " + plain("ALICE", password)) == WRONG
        assert {record["event.reason"] for record in rig.audit("auth")} == {"mechanism_ended"}
        assert rig.metrics.auth_attempts[("PLAIN", "failure", "mechanism_ended")] == 13
        assert rig.backend.connections == []
        await client.command("USER alice")
        assert await client.command(f"PASS {PASSWORD}") == WRONG
        await log_in(rig, "bob")
        seen: list[bytes] = []
        trying = asyncio.create_task(scram(client, "SCRAM-SHA-256", "alice", PASSWORD, seen=seen))
        await answer_login(await rig.backend.greeted())
        assert await trying == b"+OK Logged in"


async def test_scram_that_has_ended_does_not_tell_whether_the_password_is_right(tmp_path: Path) -> None:
    async with running(tmp_path, **sections(tmp_path, {"mechanisms": ["SCRAM-SHA-256"], "users": ["alice"]})) as rig:
        client = await rig.greeted()
        for password in (PASSWORD, canary()):
            seen: list[bytes] = []
            assert await scram(client, "SCRAM-SHA-256", "alice", password, seen=seen) == WRONG
            assert len(seen) == 1  # its first message, and no signature
        assert [record["event.reason"] for record in rig.audit("auth")] == ["mechanism_ended"] * 2


async def test_before_the_day_the_log_names_who_still_uses_it(tmp_path: Path) -> None:
    soon = {"mechanisms": ["PLAIN"], "until": SOON, "warn": "30d"}
    later = {"mechanisms": ["PLAIN"], "until": str(TODAY + timedelta(days=300)), "users": ["bob"]}
    async with running(tmp_path, **sections(tmp_path, soon, later)) as rig:
        for user in ("alice", "alice", "bob"):
            await log_in(rig, user)
        assert {record["popproxy.mechanism_until"] for record in rig.audit("login")} == {SOON}
        lines = [json.loads(line) for line in rig.log().splitlines() if "still uses" in line]
        assert [(line["user"], line["mechanism"], line["until"], line["level"]) for line in lines] == [
            ("alice", "PLAIN", SOON, "warning"), ("bob", "PLAIN", SOON, "warning"),
        ]  # fmt: skip


async def test_client_that_could_bind_may_come_where_binding_was_withdrawn(
    tmp_path: Path, server_certificate: CertificateFiles
) -> None:
    pair = {"cert": str(server_certificate.cert), "key": str(server_certificate.key)}
    rule = {"mechanisms": ["SCRAM-SHA-256-PLUS"], "until": PAST}
    some = sections(tmp_path, rule, sasl=["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"], tls="stls")
    async with running(tmp_path, **some, tls={"certificates": [pair]}) as rig:
        client = await rig.greeted()
        await client.command("STLS")
        await client.handshake(client_context())
        assert (await capabilities(client))["SASL"] == ["SCRAM-SHA-256", "PLAIN", "LOGIN"]
        first = await client.command(b"AUTH SCRAM-SHA-256 " + b64("y,,n=alice,r=abc"))
        assert challenge(first).startswith(b"r=abc"), first
