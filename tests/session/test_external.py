"""EXTERNAL through the whole proxy: certificates that count, certificates that do not, and none at all."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest

from tests.peers.certs import Authority, CertificateFiles
from tests.session.rig import Peer, answer_login, client_context, running
from tests.session.sasl_client import b64, capabilities

WRONG = b"-ERR [AUTH] authentication failed"


@pytest.fixture
def issuer(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "clients")


def sections(
    directory: Path, server: CertificateFiles, issuer: Authority, crl: bytes | None = None, **listener: Any
) -> dict[str, Any]:
    master = directory / "master"
    master.write_text("canary-pw-master")
    master.chmod(0o600)
    found: dict[str, Any] = {
        "listener": {"sasl": ["EXTERNAL"], "tls": "stls", "client_ca": str(issuer.ca), **listener},
        "external": {"rules": [{"take": "email"}]},
        "tls": {"certificates": [{"cert": str(server.cert), "key": str(server.key)}]},
        "pool": {"login": ["forward", "master"], "master": {"user": "m", "password": {"file": str(master)}}},
        "authentication": {"failure_delay": "10ms", "tries": 100},
    }
    if crl is not None:
        (directory / "crl").write_bytes(crl)
        found["listener"]["client_crl"] = str(directory / "crl")
    return found


def context(files: CertificateFiles | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    made = client_context()
    made.maximum_version = made.minimum_version = version
    if files is not None:
        made.load_cert_chain(files.cert, files.key)
    return made


async def stls(client: Peer, files: CertificateFiles | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
    assert (await client.command("STLS")).startswith(b"+OK")
    await client.handshake(context(files, version))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("authzid", ["", "Alice@Example.com"])
async def test_login(
    tmp_path: Path, server_certificate: CertificateFiles, issuer: Authority, version: ssl.TLSVersion, authzid: str
) -> None:
    alice = issuer.client(email=["alice@example.com"], common_name="Alice")
    async with running(tmp_path, **sections(tmp_path, server_certificate, issuer)) as rig:
        client = await rig.greeted()
        assert (await capabilities(client))["SASL"] == ["PLAIN", "LOGIN"]
        await stls(client, alice, version)
        assert (await capabilities(client))["SASL"] == ["EXTERNAL", "PLAIN", "LOGIN"]
        trying = asyncio.create_task(client.command(b"AUTH EXTERNAL " + (b64(authzid) or b"=")))
        lines = await answer_login(await rig.backend.greeted())
        assert lines[-2] == b"USER alice@example.com*m\r\n"
        assert await trying == b"+OK Logged in"
        (auth,), (login,) = rig.audit("auth"), rig.audit("login")
        assert (auth["event.outcome"], auth["user.name"]) == ("success", authzid or "alice@example.com")
        assert (login["user.name"], login["auth.mechanism"]) == ("alice@example.com", "EXTERNAL")
        assert login["tls.client.subject"] == "CN=Alice"
        assert len(login["tls.client.hash.sha256"]) == 64


async def test_client_without_certificate_is_not_offered_it_and_logs_in_otherwise(
    tmp_path: Path, server_certificate: CertificateFiles, issuer: Authority
) -> None:
    async with running(tmp_path, **sections(tmp_path, server_certificate, issuer)) as rig:
        client = await rig.greeted()
        assert (await client.command("AUTH EXTERNAL =")).startswith(b"-ERR this mechanism is not offered")
        await stls(client, None)
        assert (await capabilities(client))["SASL"] == ["PLAIN", "LOGIN"]
        assert (await client.command("AUTH EXTERNAL =")).startswith(b"-ERR this mechanism is not offered")
        trying = asyncio.create_task(client.command(b"AUTH PLAIN " + b64("\0alice\0canary-pw-x")))
        await answer_login(await rig.backend.greeted())
        assert await trying == b"+OK Logged in"
        assert "tls.client.subject" not in rig.audit("login")[0]


async def test_certificate_of_somebody_else_ends_the_handshake(
    tmp_path: Path, server_certificate: CertificateFiles, issuer: Authority
) -> None:
    (tmp_path / "elsewhere").mkdir()
    stranger = Authority(tmp_path / "elsewhere", "clients").client(email=["alice@example.com"])
    async with running(tmp_path, **sections(tmp_path, server_certificate, issuer)) as rig:
        client = await rig.greeted()
        assert (await client.command("STLS")).startswith(b"+OK")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await client.handshake(context(stranger, ssl.TLSVersion.TLSv1_2))
        await rig.ends("tls")


@pytest.mark.parametrize("kind", ["server", "expired"])
async def test_certificate_for_another_purpose_or_time_ends_the_handshake(
    tmp_path: Path, server_certificate: CertificateFiles, issuer: Authority, kind: str
) -> None:
    files = issuer.server() if kind == "server" else issuer.client(email=["a@b.c"], valid_days=(-9, -1))
    async with running(tmp_path, **sections(tmp_path, server_certificate, issuer)) as rig:
        client = await rig.greeted()
        assert (await client.command("STLS")).startswith(b"+OK")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await client.handshake(context(files, ssl.TLSVersion.TLSv1_2))
        await rig.ends("tls")


async def test_whom_the_certificate_does_not_name_it_does_not_open(
    tmp_path: Path, server_certificate: CertificateFiles, issuer: Authority
) -> None:
    async with running(tmp_path, **sections(tmp_path, server_certificate, issuer)) as rig:
        client = await rig.greeted()
        await stls(client, issuer.client(email=["alice@example.com"]))
        for wanted in ("bob@example.com", "alice", "alice@example.com\n", "a" * 256):
            assert await client.command(b"AUTH EXTERNAL " + b64(wanted)) == WRONG
        nobody = await rig.greeted()
        await stls(nobody, issuer.client())
        assert await nobody.command(b"AUTH EXTERNAL =") == WRONG
        reasons = [record["event.reason"] for record in rig.audit("auth")]
        assert reasons == ["authzid", "authzid", "control_character", "malformed", "not_mapped"]
        assert rig.backend.connections == []


async def test_revoked_certificate(tmp_path: Path, server_certificate: CertificateFiles, issuer: Authority) -> None:
    files = issuer.client(email=["alice@example.com"])
    some = sections(tmp_path, server_certificate, issuer, issuer.revocation_list(files))
    async with running(tmp_path, **some) as rig:
        client = await rig.greeted()
        await stls(client, files)
        assert await client.command("AUTH EXTERNAL =") == WRONG
        assert rig.audit("auth")[0]["event.reason"] == "certificate"
        assert rig.metrics.auth_attempts[("EXTERNAL", "failure", "certificate")] == 1


async def test_revocation_list_out_of_date(
    tmp_path: Path, server_certificate: CertificateFiles, issuer: Authority
) -> None:
    some = sections(tmp_path, server_certificate, issuer, issuer.revocation_list(days=-1))
    async with running(tmp_path, **some) as rig:
        rig.expected_errors += ["out of date"]
        client = await rig.greeted()
        await stls(client, issuer.client(email=["alice@example.com"]))
        assert await client.command("AUTH EXTERNAL =") == b"-ERR [SYS/TEMP] temporary problem, try again later"


async def test_account_that_the_users_file_disables(
    tmp_path: Path, server_certificate: CertificateFiles, issuer: Authority
) -> None:
    (tmp_path / "users").write_text("alice@example.com:!\n")
    some = sections(tmp_path, server_certificate, issuer, authenticate=["users"])
    some["users"] = {"file": str(tmp_path / "users")}
    async with running(tmp_path, **some) as rig:
        client = await rig.greeted()
        await stls(client, issuer.client(email=["alice@example.com"]))
        assert await client.command("AUTH EXTERNAL =") == WRONG
        assert rig.audit("auth")[0]["event.reason"] == "disabled"
