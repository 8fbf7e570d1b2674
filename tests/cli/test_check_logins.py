"""``popproxy check`` about what popproxy shows to servers: certificates, access tokens, what the vault keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from popproxy.app.check import check_environment
from popproxy.config.loader import load_file
from popproxy.types import Secret
from popproxy.vault.format import generate_key
from popproxy.vault.record import Record
from popproxy.vault.store import Vault
from tests.cli.helpers import write_config
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.token_endpoint import CLIENT, Said, TokenEndpoint, token_endpoint

USERS = "".join(f"{name}:{{SSHA512}}{'A' * 92}\n" for name in ("alice", "bob", "carol"))


async def look(directory: Path, area: str, pool: dict[str, Any], *, offline: bool = True, **more: Any) -> list[str]:
    """What is said about `area`: level, text and cure."""
    listener = {"name": "pop3", "listen": ["127.0.0.1:0"], "authenticate": ["users"]}
    (directory / "users").write_text(USERS)
    complete = {"servers": ["127.0.0.1:9"], **pool}
    path = write_config(
        directory, listeners=[listener], pools={"main": complete}, users={"file": str(directory / "users")}, **more
    )
    findings = await check_environment(load_file(path), offline=offline)
    return [f"{one.level}: {one.text}; {one.cure}" for one in findings if one.area == area]


async def test_certificate_for_servers(tmp_path: Path, authority: Authority) -> None:
    good, old, wrong = authority.client(), authority.client(valid_days=(-9, -1)), authority.issue("x.test", file="x")
    for pair, level, text in (
        (good, "ok", "names CN=somebody to servers"),
        (old, "problem", "expired on"),
        (wrong, "problem", "is not meant for clients"),
        (CertificateFiles(good.cert, old.key), "problem", "belongs to another certificate"),
        (CertificateFiles(tmp_path / "none.pem", old.key), "problem", "does not exist"),
    ):
        pool = {"login": ["external"], "certificate": {"cert": str(pair.cert), "key": str(pair.key)}}
        told = await look(tmp_path, f"certificate {pair.cert}", pool)
        assert any(line.startswith(level) and text in line for line in told), told
        assert level == "problem" or not any(line.startswith("problem") for line in told), told


@pytest.fixture
def endpoint(authority: Authority, server_certificate: CertificateFiles) -> Iterator[TokenEndpoint]:
    with token_endpoint(server_certificate, authority.ca) as endpoint:
        yield endpoint


def tokens(directory: Path, endpoint: TokenEndpoint, **more: Any) -> dict[str, Any]:
    secret = directory / "oauth.secret"
    secret.write_text(endpoint.secret)
    secret.chmod(0o600)
    section = {
        "endpoint": f"{endpoint.url}/token", "ca": str(endpoint.ca), "client_id": CLIENT,
        "client_secret": {"file": str(secret)}, "deadline": "2s", **more,
    }  # fmt: skip
    return {"login": ["xoauth2"], "xoauth2": section}


async def test_endpoint_of_access_tokens(tmp_path: Path, endpoint: TokenEndpoint) -> None:
    pool = tokens(tmp_path, endpoint)
    url = f"{endpoint.url}/token"
    assert f"ok: {url} gives access tokens; " in await look(tmp_path, "pool main", pool, offline=False)
    assert await look(tmp_path, "pool main", pool) == []
    endpoint.said = Said(503)
    told = await look(tmp_path, "pool main", pool, offline=False)
    assert any(line.startswith("problem: no access token:") and "HTTP status 503" in line for line in told), told
    endpoint.said = None
    endpoint.secret = "another"
    told = await look(tmp_path, "pool main", pool, offline=False)
    assert any(line.startswith(f"problem: {url} refuses popproxy: the endpoint says invalid_client") for line in told)
    (tmp_path / "oauth.secret").unlink()
    (line,) = await look(tmp_path, "pool main", pool)
    assert line.startswith("problem: ")
    assert "there is no such file" in line


def vault(directory: Path, **records: Record) -> dict[str, Any]:
    key = directory / "vault.key"
    key.write_text(generate_key())
    key.chmod(0o600)
    made = Vault.create(directory / "vault", Secret(key.read_text()))
    made.change({user: lambda _before, record=record: record for user, record in records.items()})  # type: ignore[misc]
    return {"file": str(directory / "vault"), "key": {"file": str(key)}}


async def test_users_for_whom_the_vault_has_nothing(tmp_path: Path, endpoint: TokenEndpoint) -> None:
    section = vault(tmp_path, alice=Record().with_backend(Secret("x")), bob=Record().with_refresh_token(Secret("x")))
    for pool, names, kind in (
        ({"login": ["stored"]}, "2 users: bob, carol", "backend"),
        (tokens(tmp_path, endpoint, grant="refresh_token"), "2 users: alice, carol", "refresh-token"),
        ({"login": ["stored", "forward"]}, "", ""),
    ):
        told = await look(tmp_path, "pool main", pool, vault=section)
        text = f"problem: the vault has nothing to log in with for {names}; popproxy vault set USER --kind {kind}"
        assert told == ([text] if names else [])
    told = await look(
        tmp_path, "pool main", tokens(tmp_path, endpoint, grant="refresh_token"), vault=section, offline=False
    )
    url = f"{endpoint.url}/token"
    assert f"ok: {url} knows {CLIENT}, and refuses a made-up refresh token; " in told
