"""Large libraries are imported only where the configuration needs them; then before root is given up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from popproxy.types import Secret
from popproxy.vault.format import generate_key
from popproxy.vault.store import Vault
from tests.peers.certs import CertificateFiles
from tests.peers.process import REPOSITORY

pytestmark = pytest.mark.long

LARGE = ("aiohttp", "cryptography", "gssapi", "jwt")
START = f"""
import asyncio, json, sys
from pathlib import Path
from popproxy.app import privileges
from popproxy.app.service import Service
from popproxy.config.loader import load_file

def large():
    return [name for name in {LARGE} if name in sys.modules]

async def main():
    service = Service(load_file(Path(sys.argv[1])))
    privileges.drop = lambda *_: before.extend(large())
    await service.start()
    await service.stop()
    print(json.dumps([before, large()]))  # behind what is logged

before = []
asyncio.run(main())
"""


def imported(directory: Path, **sections: Any) -> Sequence[str]:
    """What a proxy with these sections has imported of the large libraries; all of it before it dropped privileges."""
    pool = {"servers": ["127.0.0.1:9"], "tls": "none", "allow_cleartext": True}
    listener = {"name": "pop3", "listen": ["127.0.0.1:0"], "tls": "none", "cleartext_networks": ["127.0.0.0/8"]}
    configuration = {
        "listeners": [listener], "pools": {"main": pool}, "audit": {"file": str(directory / "audit.jsonl")},
        "http": {"listen": None}, "process": {"user": "nobody"}, **sections,
    }  # fmt: skip
    file = directory / "popproxy.yaml"
    file.write_text(json.dumps(configuration))  # YAML, too
    command = [sys.executable, "-c", START, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert before == after
    return list(after)


def test_a_proxy_without_tls_vault_and_metrics_has_none_of_them(tmp_path: Path) -> None:
    assert imported(tmp_path) == []


def test_metrics_take_aiohttp(tmp_path: Path) -> None:
    assert imported(tmp_path, http={"listen": "127.0.0.1:0"}) == ["aiohttp"]


def test_tls_takes_cryptography(tmp_path: Path, server_certificate: CertificateFiles) -> None:
    listener = {"name": "pop3s", "listen": ["127.0.0.1:0"], "tls": "implicit"}
    pair = {"cert": str(server_certificate.cert), "key": str(server_certificate.key)}
    assert imported(tmp_path, listeners=[listener], tls={"certificates": [pair]}) == ["cryptography"]


def test_the_vault_takes_cryptography(tmp_path: Path) -> None:
    key = generate_key()
    (tmp_path / "key").write_text(key)
    (tmp_path / "key").chmod(0o600)
    Vault.create(tmp_path / "vault", Secret(key))
    vault = {"file": str(tmp_path / "vault"), "key": {"file": str(tmp_path / "key")}}
    assert imported(tmp_path, vault=vault) == ["cryptography"]


def test_tokens_take_jwt_and_aiohttp(tmp_path: Path, server_certificate: CertificateFiles) -> None:
    pair = {"cert": str(server_certificate.cert), "key": str(server_certificate.key)}
    listener = {"name": "pop3s", "listen": ["127.0.0.1:0"], "tls": "implicit", "sasl": ["XOAUTH2"]}
    (tmp_path / "master").write_text("canary-pw-master")
    (tmp_path / "master").chmod(0o600)
    pool = {
        "servers": ["127.0.0.1:9"], "tls": "none", "allow_cleartext": True, "login": ["master"],
        "master": {"user": "m", "password": {"file": str(tmp_path / "master")}},
    }  # fmt: skip
    oauth = {"issuers": [{"issuer": "https://login.example.com", "audience": ["popproxy"]}]}
    sections = {
        "listeners": [{**listener, "authenticate": ["users"]}], "tls": {"certificates": [pair]},
        "pools": {"main": pool}, "oauth": oauth, "users": {"file": str(tmp_path / "users")},
    }  # fmt: skip
    (tmp_path / "users").write_text("")
    assert imported(tmp_path, **sections) == ["aiohttp", "cryptography", "jwt"]


def test_a_web_service_takes_aiohttp(tmp_path: Path) -> None:
    listener = {"name": "pop3", "listen": ["127.0.0.1:0"], "tls": "none", "cleartext_networks": ["127.0.0.0/8"]}
    web = {"web": {"http": {"url": "http://127.0.0.1:9/auth"}}}
    assert imported(tmp_path, listeners=[{**listener, "authenticate": ["web"]}], directories=web) == ["aiohttp"]
