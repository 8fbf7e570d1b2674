"""``popproxy check`` about web services that judge passwords."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from popproxy.app.check import check_environment
from popproxy.app.checks.finding import Finding
from popproxy.config.loader import load_file
from tests.cli.helpers import write_config
from tests.peers.auth_http import Responder, responder
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.process import free_port, public_directory


async def look(directory: Path, *, offline: bool = False, area: str = "directory web", **section: Any) -> list[Finding]:
    """What is said about the directory web, or what `area` names."""
    listener = {"name": "pop3", "listen": ["127.0.0.1:0"], "authenticate": ["web"]}
    process = {} if area.startswith("directory") else {"process": {"user": "nobody"}}
    path = write_config(directory, listeners=[listener], directories={"web": {"http": section}}, **process)
    findings = await check_environment(load_file(path), offline=offline)
    return [finding for finding in findings if finding.area == area]


def told(findings: list[Finding], *words: str) -> bool:
    return any(all(word in f"{finding.text} {finding.cure}" for word in words) for finding in findings)


@pytest.fixture
def server(server_certificate: CertificateFiles) -> Any:
    with responder({}, server_certificate) as running:
        yield running


async def test_a_service_that_is_well(server: Responder, authority: Authority, tmp_path: Path) -> None:
    findings = await look(tmp_path, url=server.url, ca=str(authority.ca))
    assert [finding.level for finding in findings] == ["ok"], findings
    assert told(findings, "answers over TLS, its certificate is good, and refuses somebody unknown")
    assert await look(tmp_path, url=server.url, ca=str(authority.ca), offline=True) == []
    assert len(server.requests) == 1


async def test_what_is_wrong_with_a_service(server: Responder, authority: Authority, tmp_path: Path) -> None:
    good: dict[str, Any] = {"url": server.url, "ca": str(authority.ca)}
    assert told(await look(tmp_path, url=server.url), "certificate is refused", "correct url:, headers: or ca:")
    assert told(await look(tmp_path, url=server.url, ca="/nonexistent"), "/nonexistent cannot be used", "correct ca:")
    assert told(await look(tmp_path, **good, headers={"X-Key": {"file": "/nonexistent"}}), "there is no such file")
    key = tmp_path / "key"
    key.write_bytes(b"a\nb\n")
    key.chmod(0o600)
    assert told(await look(tmp_path, **good, headers={"X-Key": {"file": str(key)}}), "X-Key has control characters")
    server.says = b"HTTP/1.0 200 OK\r\nAuth-Status: OK\r\n\r\n"
    assert told(await look(tmp_path, **good), "lets anybody in")
    server.says = b"HTTP/1.0 404 Not Found\r\n\r\n"
    assert told(await look(tmp_path, **good), "HTTP status 404, no Auth-Status")
    url = f"http://127.0.0.1:{free_port()}/auth"
    assert told(await look(tmp_path, url=url), url, "it cannot be reached: Connection refused")


@pytest.mark.real
async def test_a_socket_that_the_service_may_not_connect_to(tmp_path: Path) -> None:
    assert os.geteuid() == 0, "run as root: sudo make test"
    with public_directory("socket") as directory, responder({}, path=directory / "auth.sock") as server:
        assert not told(await look(tmp_path, area="process", url=server.url), "auth.sock")
        (directory / "auth.sock").chmod(0o644)
        findings = await look(tmp_path, area="process", url=server.url)
        assert told(findings, "auth.sock cannot be connected to by nobody", "chmod 660")
