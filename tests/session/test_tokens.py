"""OAUTHBEARER and XOAUTH2 through the whole proxy, with a real issuer behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers.certs import Authority, CertificateFiles
from tests.peers.issuer import Issuer, issuing
from tests.session.rig import Peer, Rig, answer_login, client_context, running
from tests.session.sasl_client import b64, capabilities, challenge

WRONG = b"-ERR [AUTH] authentication failed"
TRY_LATER = b"-ERR [SYS/TEMP] temporary problem, try again later"


@pytest.fixture
def issuer(authority: Authority) -> Iterator[Issuer]:
    with issuing(authority) as it:
        yield it


def sections(directory: Path, server: CertificateFiles, entry: dict[str, Any], **oauth: Any) -> dict[str, Any]:
    master = directory / "master"
    master.write_text("canary-pw-master")
    master.chmod(0o600)
    return {
        "listener": {"sasl": ["OAUTHBEARER", "XOAUTH2"], "tls": "stls"},
        "oauth": {"issuers": [entry], "deadline": "20s", **oauth},
        "tls": {"certificates": [{"cert": str(server.cert), "key": str(server.key)}]},
        "pool": {"login": ["forward", "master"], "master": {"user": "m", "password": {"file": str(master)}}},
        "authentication": {"failure_delay": "10ms", "tries": 100},
    }


async def inside_tls(rig: Rig) -> Peer:
    client = await rig.greeted()
    assert (await client.command("STLS")).startswith(b"+OK")
    await client.handshake(client_context())
    return client


def bearer(token: str, user: str = "alice") -> bytes:
    named = f"a={user}" if user else ""
    return b"AUTH OAUTHBEARER " + b64(f"n,{named},\1host=localhost\1port=110\1auth=Bearer {token}\1\1")


def xoauth2(token: str, user: str = "alice") -> bytes:
    return b"AUTH XOAUTH2 " + b64(f"user={user}\1auth=Bearer {token}\1\1")


async def let_in(rig: Rig, client: Peer, line: bytes) -> bytes:
    """The command with which the backend was logged in to."""
    trying = asyncio.create_task(client.command(line))
    lines = await answer_login(await rig.backend.greeted())
    assert await trying == b"+OK Logged in"
    return lines[-2]


async def refused(client: Peer, line: bytes, dummy: bytes = b"AQ==") -> dict[str, str]:
    """The issuer's error as the client hears it, before its dummy answer and [AUTH] (RFC 7628 section 3.2.3)."""
    said: dict[str, str] = json.loads(challenge(await client.command(line)))
    assert await client.command(dummy) == WRONG
    return said


async def test_login(tmp_path: Path, server_certificate: CertificateFiles, issuer: Issuer) -> None:
    async with running(tmp_path, **sections(tmp_path, server_certificate, issuer.section())) as rig:
        clear = await rig.greeted()
        assert (await capabilities(clear))["SASL"] == ["PLAIN", "LOGIN"]
        for line in (bearer(issuer.token()), xoauth2(issuer.token())):
            assert (await clear.command(line)).startswith(b"-ERR this mechanism is not offered")
        assert issuer.asked == []
        for line, user in (
            (bearer(issuer.token()), "alice"),
            (bearer(issuer.token(), ""), ""),
            (xoauth2(issuer.token(), "Alice"), "Alice"),
        ):
            client = await inside_tls(rig)
            assert (await capabilities(client))["SASL"] == ["OAUTHBEARER", "XOAUTH2", "PLAIN", "LOGIN"]
            assert await let_in(rig, client, line) == b"USER alice*m\r\n"
            assert rig.audit("auth")[-1]["user.name"] == (user or "alice")
            login = rig.audit("login")[-1]
            assert (login["user.name"], login["popproxy.strategy"]) == ("alice", "master")
            assert login["auth.mechanism"] == line.split()[1].decode()
        assert rig.metrics.auth_attempts[("OAUTHBEARER", "success", "none")] == 2


async def test_refusal(tmp_path: Path, server_certificate: CertificateFiles, issuer: Issuer) -> None:
    some = sections(tmp_path, server_certificate, issuer.section(scopes=["pop", "mail"]))
    async with running(tmp_path, **some) as rig:
        client = await inside_tls(rig)
        told = {
            "status": "invalid_token",
            "scope": "pop mail",
            "openid-configuration": f"{issuer.name}/.well-known/openid-configuration",
        }
        assert await refused(client, bearer(issuer.token())) == told
        assert await refused(client, bearer("canary-pw-token"), b"*") == told
        wrong = issuer.token(scope="pop mail", email="bob")
        assert await refused(client, xoauth2(wrong), b"") == {"status": "400", "schemes": "Bearer", "scope": "pop mail"}
        assert (await client.command("AUTH OAUTHBEARER")).startswith(b"+ ")
        said = challenge(await client.command(b64("n,,\1auth=\1\1")))  # RFC 7628 section 4.3: where are tokens?
        assert json.loads(said) == {**told, "status": "invalid_request"}
        assert (await client.command("AQ==")).startswith(b"-ERR ")
        reasons = [record["event.reason"] for record in rig.audit("auth")]
        assert reasons == ["token_scope", "token_invalid", "authzid"]
        assert rig.backend.connections == []
        good = issuer.token(scope="mail pop")
        assert await let_in(rig, client, bearer(good)) == b"USER alice*m\r\n"


async def test_issuer_out_of_order_is_not_the_users_fault(
    tmp_path: Path, server_certificate: CertificateFiles, issuer: Issuer
) -> None:
    some = sections(tmp_path, server_certificate, issuer.section(), deadline="300ms")
    async with running(tmp_path, **some) as rig:
        rig.expected_errors += ["cannot authenticate"]
        token = issuer.token()
        client = await inside_tls(rig)
        issuer.mood = "slow"
        assert await client.command(bearer(token)) == TRY_LATER
        issuer.stop()
        assert await client.command(bearer(token)) == TRY_LATER
        assert await client.command(xoauth2(token)) == TRY_LATER
        records = rig.audit("auth")
        assert {(record["event.outcome"], record["event.reason"]) for record in records} == {("unknown", "unavailable")}
        # and nobody else waits: a password is judged meanwhile
        other = await inside_tls(rig)
        trying = asyncio.create_task(other.command(b"AUTH PLAIN " + b64("\0alice\0canary-pw-x")))
        await answer_login(await rig.backend.greeted())
        assert await trying == b"+OK Logged in"


async def test_introspection(tmp_path: Path, server_certificate: CertificateFiles, issuer: Issuer) -> None:
    issuer.known["canary-pw-opaque"] = {"email": "alice", "aud": "popproxy"}
    some = sections(tmp_path, server_certificate, issuer.introspecting(tmp_path))
    async with running(tmp_path, **some) as rig:
        client = await inside_tls(rig)
        said = await refused(client, bearer("canary-pw-other"))
        assert said == {"status": "invalid_token"}
        assert await let_in(rig, client, xoauth2("canary-pw-opaque")) == b"USER alice*m\r\n"


async def test_account_that_the_users_file_disables(
    tmp_path: Path, server_certificate: CertificateFiles, issuer: Issuer
) -> None:
    (tmp_path / "users").write_text("alice:!\n")
    some = sections(tmp_path, server_certificate, issuer.section())
    some["listener"]["authenticate"] = ["users"]
    some["users"] = {"file": str(tmp_path / "users")}
    async with running(tmp_path, **some) as rig:
        await refused(await inside_tls(rig), bearer(issuer.token()))
        assert rig.audit("auth")[0]["event.reason"] == "disabled"


async def test_longest_token(tmp_path: Path, server_certificate: CertificateFiles, issuer: Issuer) -> None:
    async with running(tmp_path, **sections(tmp_path, server_certificate, issuer.section())) as rig:
        client = await inside_tls(rig)
        token = issuer.token(groups="x" * 5800)
        assert 7900 < len(token) <= 8192
        assert await let_in(rig, client, bearer(token)) == b"USER alice*m\r\n"
        other = await inside_tls(rig)
        challenge(await other.command(bearer(issuer.token(groups="x" * 6000))))
        assert (await other.command("AQ==")).startswith(b"-ERR ")
