"""``popproxy check`` about directories, with a real slapd and with what is none."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from popproxy.app.check import check_environment
from popproxy.app.checks.finding import Finding
from popproxy.config.loader import load_file
from tests.cli.helpers import write_config
from tests.peers import scripted_ldap as ldap
from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.process import free_port
from tests.peers.scripted_ldap import BIND, scripted_ldap
from tests.peers.slapd import PEOPLE, SERVICE, Person, Slapd, slapd

pytestmark = pytest.mark.long

TEMPLATE: dict[str, Any] = {"user_dn": f"uid={{local}},{PEOPLE}"}


@pytest.fixture(scope="module")
def server(authority: Authority, server_certificate: CertificateFiles) -> Iterator[Slapd]:
    with slapd(authority, server_certificate, [Person("alice"), Person("bob")]) as running:
        yield running


async def look(directory: Path, *, offline: bool = False, **section: Any) -> list[Finding]:
    """What is said about the directory corp."""
    listener = {"name": "pop3", "listen": ["127.0.0.1:0"], "authenticate": ["corp"]}
    path = write_config(
        directory, listeners=[listener], directories={"corp": {"ldap": section}}, timeouts={"connect": "1s"}
    )
    findings = await check_environment(load_file(path), offline=offline)
    return [finding for finding in findings if finding.area == "directory corp"]


def searching(server: Slapd, authority: Authority, directory: Path, **more: Any) -> dict[str, Any]:
    return {
        "servers": [f"127.0.0.1:{server.port}"], "ca": str(authority.ca), "base": PEOPLE, "filter": "(mail={user})",
        "account": {"dn": SERVICE, "password": {"file": str(server.account_file)}}, **more,
    }  # fmt: skip


def told(findings: list[Finding], *words: str) -> bool:
    return any(all(word in f"{finding.text} {finding.cure}" for word in words) for finding in findings)


@pytest.mark.real
async def test_a_directory_that_is_well(server: Slapd, authority: Authority, tmp_path: Path) -> None:
    findings = await look(tmp_path, **searching(server, authority, tmp_path))
    assert [finding.level for finding in findings] == ["ok", "ok"], findings
    assert told(findings, "answers with TLSv1.3, its certificate is good")
    assert told(findings, "lets popproxy in, the search runs")
    implicit = {"servers": [f"127.0.0.1:{server.tls_port}"], "tls": "implicit", "ca": str(authority.ca), **TEMPLATE}
    findings = await look(tmp_path, **implicit)
    assert [finding.level for finding in findings] == ["ok", "ok"], findings
    assert told(findings, "users can bind")


@pytest.mark.real
async def test_what_is_wrong_with_a_directory(server: Slapd, authority: Authority, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.password"
    wrong.write_text(canary())
    wrong.chmod(0o600)
    account = {"dn": SERVICE, "password": {"file": str(wrong)}}
    findings = await look(tmp_path, **searching(server, authority, tmp_path, account=account))
    assert told(findings, "does not let popproxy in", "invalidCredentials", "correct account:")
    findings = await look(tmp_path, **searching(server, authority, tmp_path, base="ou=nowhere,dc=example,dc=com"))
    assert told(findings, "cannot be searched: there is no ou=nowhere", "correct base:")
    findings = await look(tmp_path, **searching(server, authority, tmp_path, filter="(|(mail={user})(uid=*))"))
    assert told(findings, "more than one entry for a name that nobody has", "filter:")
    findings = await look(tmp_path, servers=[f"127.0.0.1:{server.port}"], ca=str(authority.ca), user_dn="{user}")
    assert told(findings, "users cannot bind", "invalidDNSyntax", "correct user_dn:")
    own = Authority(tmp_path, "another")
    findings = await look(tmp_path, **searching(server, authority, tmp_path, ca=str(own.ca)))
    assert told(findings, "certificate that is refused", "CA certificate of the directory")
    findings = await look(tmp_path, **searching(server, authority, tmp_path, tls="implicit"))
    assert [finding.level for finding in findings] == ["problem"]
    anonymous = searching(server, authority, tmp_path)
    del anonymous["account"]
    assert told(await look(tmp_path, **anonymous), "searched anonymously", "account")


async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    port = free_port()
    findings = await look(tmp_path, servers=[f"127.0.0.1:{port}"], **TEMPLATE)
    assert [finding.text for finding in findings] == [f"127.0.0.1:{port} refuses connections"]
    assert await look(tmp_path, servers=[f"127.0.0.1:{port}"], offline=True, **TEMPLATE) == []
    assert told(await look(tmp_path, servers=["no-such-host.invalid"], **TEMPLATE), "does not resolve", "servers:")


async def test_a_directory_without_tls_or_an_answer(tmp_path: Path) -> None:
    with scripted_ldap(lambda request: ldap.result(request, ldap.EXTENDED_RESPONSE, 2)) as server:
        findings = await look(tmp_path, servers=[f"127.0.0.1:{server.port}"], **TEMPLATE)
        assert told(findings, "refuses StartTLS", "tls: implicit")
        server.answer = lambda request: b""
        assert told(
            await look(tmp_path, servers=[f"127.0.0.1:{server.port}"], **TEMPLATE), "does not answer within 1 s"
        )
        server.answer = lambda request: None
        assert told(await look(tmp_path, servers=[f"127.0.0.1:{server.port}"], **TEMPLATE), "closed the connection")


async def test_a_directory_that_lets_everybody_in(tmp_path: Path) -> None:
    def yes(request: ldap.Request) -> bytes:
        if request.operation == BIND:
            return ldap.bind_result(request)
        return ldap.result(request, ldap.EXTENDED_RESPONSE, 2)

    with scripted_ldap(yes) as server:
        address = f"127.0.0.1:{server.port}"
        findings = await look(tmp_path, servers=[address], tls="none", allow_cleartext=True, **TEMPLATE)
        assert told(findings, "users cannot bind", "anybody may bind as anybody")


async def test_the_password_of_the_account(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    account = {"dn": SERVICE, "password": {"file": str(secret)}}
    findings = await look(tmp_path, servers=["127.0.0.1:9"], account=account, base="dc=a", filter="(mail={user})")
    assert told(findings, str(secret), "there is no such file")


@pytest.mark.real
async def test_a_ca_file_that_the_service_may_not_read(server: Slapd, authority: Authority, tmp_path: Path) -> None:
    assert os.geteuid() == 0, "run as root: sudo make test"
    private = tmp_path / "ca.pem"
    private.write_bytes(authority.ca.read_bytes())
    private.chmod(0o600)
    section = searching(server, authority, tmp_path, ca=str(private))
    listener = {"name": "pop3", "listen": ["127.0.0.1:0"], "authenticate": ["corp"]}
    path = write_config(tmp_path, listeners=[listener], directories={"corp": {"ldap": section}})
    findings = await check_environment(load_file(path))
    assert told(findings, f"{private} cannot be read by {pwd.getpwuid(65534).pw_name}")
