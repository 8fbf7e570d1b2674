"""``popproxy check`` about databases: what runs, what does not, and what it does not understand."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from popproxy.app.check import check_environment
from popproxy.app.checks.finding import Finding
from popproxy.config.loader import load_file
from tests.cli.helpers import write_config
from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.postgresql import Postgresql, postgresql
from tests.peers.process import free_port

pytestmark = pytest.mark.long

TABLE = "CREATE TABLE users (login text, password text)"
QUERY = "SELECT password FROM users WHERE login = :user"


@pytest.fixture(scope="module")
def server(server_certificate: CertificateFiles) -> Iterator[Postgresql]:
    with postgresql(server_certificate, TABLE) as running:
        yield running


@pytest.fixture
def users(tmp_path: Path) -> Path:
    file = tmp_path / "users.db"
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute(TABLE)
    return file


async def look(
    directory: Path, *, offline: bool = False, area: str = "directory shop", **section: Any
) -> list[Finding]:
    listener = {"name": "pop3", "listen": ["127.0.0.1:0"], "authenticate": ["shop"]}
    section = {"query": QUERY, **section}
    path = write_config(directory, listeners=[listener], directories={"shop": {"sql": section}})
    findings = await check_environment(load_file(path), offline=offline)
    return [finding for finding in findings if finding.area == area]


def told(findings: list[Finding], *words: str) -> bool:
    return any(all(word in f"{finding.text} {finding.cure}" for word in words) for finding in findings)


async def test_sqlite(users: Path, tmp_path: Path) -> None:
    findings = await look(tmp_path, url=f"sqlite:{users}")
    assert [(one.level, one.text) for one in findings] == [("ok", f"{users} answers, the query gives password")]
    assert await look(tmp_path, url=f"sqlite:{users}", offline=True) == []
    assert told(await look(tmp_path, url="sqlite:/nonexistent/users.db"), "in vain", "unable to open", "url:")


async def test_what_the_query_gives(users: Path, tmp_path: Path) -> None:
    url = f"sqlite:{users}"
    query = "SELECT login FROM users WHERE login = :user"
    assert told(await look(tmp_path, url=url, query=query), "a column login", "select login AS one of password")
    query = "SELECT password, login AS password FROM users WHERE login = :user"
    assert told(await look(tmp_path, url=url, query=query), "two columns password", "once")
    query = "SELECT 'main' AS pool FROM users WHERE login = :user"
    assert told(await look(tmp_path, url=url, query=query), "nobody can log in by it", "select the hash")
    query = "SELECT password FROM user WHERE login = :user"
    assert told(await look(tmp_path, url=url, query=query), "no such table: user", "query:")


async def test_nobody_there(tmp_path: Path) -> None:
    port = free_port()
    findings = await look(tmp_path, url=f"postgresql://a@127.0.0.1:{port}/mail")
    assert told(findings, f"mail at 127.0.0.1:{port} was asked in vain: it cannot be reached")
    findings = await look(tmp_path, url=f"postgresql://a@127.0.0.1:{port}/mail", ca="/nonexistent/ca.pem")
    assert told(findings, "/nonexistent/ca.pem cannot be used", "correct ca:")


@pytest.mark.real
async def test_postgresql(server: Postgresql, authority: Authority, tmp_path: Path) -> None:
    good: dict[str, Any] = {
        "url": server.url(),
        "password": {"file": str(server.password_file)},
        "ca": str(authority.ca),
    }
    assert [one.level for one in await look(tmp_path, **good)] == ["ok"]
    wrong = tmp_path / "wrong"
    wrong.write_text(canary())
    wrong.chmod(0o600)
    assert told(
        await look(tmp_path, **{**good, "password": {"file": str(wrong)}}), "does not let popproxy in", "password:"
    )
    assert told(await look(tmp_path, **{**good, "password": {"file": "/nonexistent"}}), "there is no such file")
    wrong.write_bytes(b"m\xfcller")
    assert told(await look(tmp_path, **{**good, "password": {"file": str(wrong)}}), "its password is not UTF-8")
    assert told(await look(tmp_path, **{**good, "ca": str(Authority(tmp_path, "other").ca)}), "certificate is refused")


@pytest.mark.real
async def test_a_file_that_the_service_may_not_read(users: Path, tmp_path: Path) -> None:
    assert os.geteuid() == 0, "run as root: sudo make test"
    users.chmod(0o600)
    assert told(await look(tmp_path, area="process", url=f"sqlite:{users}"), f"{users} cannot be read by nobody")
