"""``popproxy check`` finds what is wrong with a machine, and says what to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import popproxy as popproxy_package
from popproxy.app.check import check_environment
from popproxy.app.checks import system
from popproxy.app.checks.finding import Finding
from popproxy.app.checks.system import installation
from popproxy.auth.hashes import hash_password, scram_verifier
from popproxy.cli.exits import ExitCode
from popproxy.config.loader import load_file
from popproxy.demo.backend import MaildirServer
from popproxy.demo.certificates import issue, make_authority
from popproxy.types import Mechanism, Secret
from popproxy.vault.format import generate_key
from popproxy.vault.store import Vault
from tests.cli.backends import backend, tls_context
from tests.cli.helpers import popproxy, write_config, write_pair
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.process import free_port

pytestmark = pytest.mark.long


async def look(directory: Path, offline: bool = True, **sections: Any) -> list[Finding]:
    return await check_environment(load_file(write_config(directory, **sections)), offline=offline)


def bad(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.level, finding.text, finding.cure) for finding in findings if finding.level != "ok"]


def only(findings: list[Finding], level: str) -> Finding:
    found = [finding for finding in findings if finding.level != "ok"]
    assert len(found) == 1, bad(findings)
    assert found[0].level == level
    return found[0]


async def test_machine_in_order_has_no_findings(tmp_path: Path) -> None:
    async with backend() as server:
        pools = {"main": {"servers": [server], "tls": "none", "allow_cleartext": True}}
        findings = await look(tmp_path, offline=False, pools=pools)
    assert bad(findings) == []
    assert any("is for localhost" in finding.text for finding in findings)
    assert any("takes pipelined commands" in finding.text for finding in findings)


# Certificates


@pytest.mark.parametrize(
    ("days", "level", "text"),
    [(-3, "problem", "expired on"), (5, "warning", "expires in 4 days"), (2, "warning", "expires in 1 day,")],
)
async def test_certificate_dates(tmp_path: Path, days: int, level: str, text: str) -> None:
    authority = make_authority(days=400)
    pair = write_pair(tmp_path, issue(authority, ["localhost"], days), "old", chain=(authority,))
    finding = only(await look(tmp_path, tls={"certificates": [pair]}), level)
    assert text in finding.text
    assert f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d}" in finding.text


async def test_key_of_another_certificate(tmp_path: Path) -> None:
    authority = make_authority(days=400)
    pair = write_pair(tmp_path, issue(authority, ["localhost"], 300), "one", chain=(authority,))
    other = write_pair(tmp_path, issue(authority, ["localhost"], 300), "other", chain=(authority,))
    finding = only(await look(tmp_path, tls={"certificates": [{**pair, "key": other["key"]}]}), "problem")
    assert "belongs to another certificate" in finding.text


@pytest.mark.parametrize(("mode", "who"), [(0o644, "everybody"), (0o640, "its group")])
async def test_key_open_to_others(tmp_path: Path, mode: int, who: str) -> None:
    authority = make_authority(days=400)
    pair = write_pair(tmp_path, issue(authority, ["localhost"], 300), "open", chain=(authority,))
    os.chmod(pair["key"], mode)
    finding = only(await look(tmp_path, tls={"certificates": [pair]}), "problem")
    assert f"may be read by {who}" in finding.text
    assert finding.cure == f"chmod 600 {pair['key']}"


@pytest.mark.filterwarnings("error")  # some authorities of the system are certificates that RFC 5280 forbids
async def test_chain_without_its_authority(tmp_path: Path) -> None:
    authority = make_authority("Private CA", days=400)
    pair = write_pair(tmp_path, issue(authority, ["localhost"], 300), "alone")
    finding = only(await look(tmp_path, tls={"certificates": [pair]}), "warning")
    assert "incomplete" in finding.text
    assert "Private CA" in finding.cure


async def test_authority_of_the_system_need_not_be_in_the_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = make_authority("Public CA", days=400)
    (tmp_path / "system.pem").write_bytes(make_authority(days=400).certificate_pem() + authority.certificate_pem())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    pair = write_pair(tmp_path, issue(authority, ["localhost"], 300), "alone")
    assert bad(await look(tmp_path, tls={"certificates": [pair]})) == []


async def test_chain_in_the_wrong_order(tmp_path: Path) -> None:
    authority, stranger = make_authority(days=400), make_authority("Stranger", days=400)
    pair = write_pair(tmp_path, issue(authority, ["localhost"], 300), "mixed", chain=(stranger,))
    assert "chain breaks" in only(await look(tmp_path, tls={"certificates": [pair]}), "warning").text


async def test_missing_and_broken_files(tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("junk")
    missing = await look(tmp_path, tls={"certificates": [{"cert": "/nonexistent/cert.pem"}]})
    assert "does not exist" in only(missing, "problem").text
    junk = await look(tmp_path, tls={"certificates": [{"cert": str(tmp_path / "junk")}]})
    assert "no certificate in PEM" in only(junk, "problem").text


# Ports


async def test_port_taken_by_somebody_else_names_the_process(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finding = only(await look(tmp_path, listeners=[{"name": "pop3", "listen": [f"127.0.0.1:{port}"]}]), "problem")
    assert f"127.0.0.1:{port} is taken by" in finding.text
    assert f"(pid {os.getpid()})" in finding.text


async def test_address_of_another_machine(tmp_path: Path) -> None:
    finding = only(await look(tmp_path, listeners=[{"name": "pop3", "listen": ["192.0.2.1:0"]}]), "problem")
    assert "not an address of this machine" in finding.text


async def test_port_of_the_metrics_is_checked(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        finding = only(await look(tmp_path, http={"listen": f"127.0.0.1:{taken.getsockname()[1]}"}), "problem")
    assert finding.area == "metrics"


# Users, vault, process, audit


def local_users(directory: Path, *lines: str) -> dict[str, Any]:
    """Sections for a listener with APOP, with a users file of `lines` and an empty vault."""
    (directory / "users").write_text("\n".join(lines) + "\n")
    (directory / "users").chmod(0o644)
    (directory / "vault.key").write_text(generate_key())
    (directory / "vault.key").chmod(0o600)
    Vault.create(directory / "vault", Secret((directory / "vault.key").read_bytes()))
    if os.geteuid() == 0:
        shutil.chown(directory / "vault", "nobody")  # as `popproxy vault init` does
    else:
        (directory / "vault").chmod(0o644)
    pool = {"servers": ["127.0.0.1:9"], "tls": "none", "allow_cleartext": True, "login": ["stored", "forward"]}
    return {
        "listeners": [{"name": "pop3", "listen": ["127.0.0.1:0"], "apop": True, "authenticate": ["users"]}],
        "users": {"file": str(directory / "users")},
        "vault": {"file": str(directory / "vault"), "key": {"file": str(directory / "vault.key")}},
        "pools": {"main": pool},
    }


async def test_apop_users_without_vault_secret_are_named(tmp_path: Path) -> None:
    stored = hash_password(b"x")
    sections = local_users(tmp_path, f"alice:{stored}", f"bob:{stored}")
    Vault.open(tmp_path / "vault", Secret((tmp_path / "vault.key").read_bytes())).set("alice", Secret("x"))
    finding = only(await look(tmp_path, **sections), "problem")
    assert "bob only has a hash" in finding.text
    assert finding.cure == "popproxy vault set bob"


def offering(sections: dict[str, Any], *names: str) -> dict[str, Any]:
    """`sections` with a listener that offers these mechanisms, and no APOP."""
    sections["listeners"][0] |= {"sasl": list(names), "apop": False}
    return sections


async def test_scram_of_which_nobody_has_a_verifier_is_a_problem(tmp_path: Path) -> None:
    sections = offering(local_users(tmp_path, f"alice:{hash_password(b'x')}"), "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS")
    sections["listeners"][0]["tls"] = "none"
    sections["listeners"][0]["sasl"].pop()
    finding = only(await look(tmp_path, **sections), "problem")
    assert "nobody has a verifier for SCRAM-SHA-256" in finding.text
    assert "--scheme scram-sha-256" in finding.cure


async def test_users_who_cannot_use_scram_are_named_in_a_warning(tmp_path: Path) -> None:
    verifier = scram_verifier(b"x", Mechanism.SCRAM_SHA_256, 4096)
    lines = [f"alice:{verifier}", "carol:!", *(f"user{n}:{hash_password(b'x')}" for n in range(6))]
    sections = offering(local_users(tmp_path, *lines), "SCRAM-SHA-256")
    vault = Vault.open(tmp_path / "vault", Secret((tmp_path / "vault.key").read_bytes()))
    vault.change({"user0": lambda record: record.with_verifiers(Secret("x"))})
    finding = only(await look(tmp_path, **sections), "warning")
    assert finding.text == "5 users cannot use SCRAM-SHA-256: user1, user2, user3, user4, user5"


async def test_cram_md5_needs_the_secret_itself(tmp_path: Path) -> None:
    sections = offering(local_users(tmp_path, f"alice:{hash_password(b'x')}"), "CRAM-MD5")
    finding = only(await look(tmp_path, **sections), "problem")
    assert finding.text == "alice only has a hash, so CRAM-MD5 would always fail"


def asking(directory: Path, issuer: Authority, server: CertificateFiles, **external: Any) -> dict[str, Any]:
    """Sections for a listener that asks clients for certificates of `issuer`, with its revocation list."""
    (directory / "crl").write_bytes(issuer.revocation_list())
    pool = {"servers": ["127.0.0.1:9"], "tls": "none", "allow_cleartext": True, "login": ["forward", "master"]}
    (directory / "master").write_text("canary")
    (directory / "master").chmod(0o600)
    listener = {"name": "pop3", "listen": ["127.0.0.1:0"], "sasl": ["EXTERNAL"], "client_ca": str(issuer.ca)}
    return {
        "listeners": [listener | {"client_crl": str(directory / "crl")}],
        "tls": {"certificates": [{"cert": str(server.cert), "key": str(server.key)}]},
        "external": {"rules": [{"take": "email"}], **external},
        "pools": {"main": {**pool, "master": {"user": "m", "password": {"file": str(directory / "master")}}}},
    }


def about_clients(findings: list[Finding]) -> list[Finding]:
    """Without those about the server's certificate."""
    return [finding for finding in findings if not finding.area.startswith("certificate ")]


async def test_authorities_of_clients_and_their_lists(tmp_path: Path, server_certificate: CertificateFiles) -> None:
    issuer = Authority(tmp_path, "clients")
    sections = asking(tmp_path, issuer, server_certificate)
    texts = [finding.text for finding in await look(tmp_path, **sections)]
    assert "clients may show certificates of CN=clients" in texts
    assert any(text.startswith("the revocation list of CN=clients is good until") for text in texts)
    (tmp_path / "crl").write_bytes(issuer.revocation_list(days=-1))
    finding = only(about_clients(await look(tmp_path, **sections)), "problem")
    assert finding.text == "the revocation list of CN=clients is out of date"
    (tmp_path / "crl").write_text("nothing")
    assert "no revocation list in PEM" in only(about_clients(await look(tmp_path, **sections)), "problem").text
    (tmp_path / "crl").unlink()
    assert "does not exist" in only(about_clients(await look(tmp_path, **sections)), "problem").text
    Path(sections["listeners"][0]["client_ca"]).write_text("nothing")
    (tmp_path / "crl").write_bytes(issuer.revocation_list())
    assert "no certificate in PEM" in only(about_clients(await look(tmp_path, **sections)), "problem").text


async def test_authority_without_a_list_and_a_map_that_cannot_be_read(
    tmp_path: Path, server_certificate: CertificateFiles
) -> None:
    issuer, other = Authority(tmp_path, "clients"), Authority(tmp_path, "others")
    issuer.ca.write_bytes(issuer.ca.read_bytes() + other.ca.read_bytes())
    rules = [{"take": "fingerprint", "file": str(tmp_path / "map")}]
    (tmp_path / "map").write_text("abcd alice\n")
    findings = about_clients(await look(tmp_path, **asking(tmp_path, issuer, server_certificate, rules=rules)))
    lacking, wrong = (text for _, text, _ in bad(findings))
    assert "there is no revocation list of CN=others" in lacking
    assert "map:1: not a SHA-256 fingerprint" in wrong


async def test_trusted_machines_that_cannot_be_read(tmp_path: Path) -> None:
    sections = local_users(tmp_path)
    sections["listeners"][0] |= {"rpop": "rfc", "apop": False}
    sections["rpop"] = {"networks": ["127.0.0.1"], "hosts": str(tmp_path / "hosts")}
    (tmp_path / "hosts").write_text("alice here ajones\n")
    del sections["vault"]
    sections["pools"]["main"] |= {"login": ["forward", "master"]}
    (tmp_path / "master").write_text("canary")
    (tmp_path / "master").chmod(0o600)
    sections["pools"]["main"]["master"] = {"user": "m", "password": {"file": str(tmp_path / "master")}}
    finding = only(await look(tmp_path, **sections), "problem")
    assert finding.text.startswith(f"{tmp_path}/hosts:1: ")


async def test_rpop_of_which_nobody_has_an_id(tmp_path: Path) -> None:
    sections = local_users(tmp_path)
    sections["listeners"][0] |= {"rpop": "id", "apop": False}
    sections["rpop"] = {"networks": ["127.0.0.1"]}
    finding = only(await look(tmp_path, **sections), "problem")
    assert (finding.area, finding.cure) == ("RPOP", "popproxy vault set USER --kind rpop")


async def test_every_wrong_line_of_the_users_file(tmp_path: Path) -> None:
    findings = await look(
        tmp_path, **local_users(tmp_path, "alice", "bob:plain-canary", f"carol:{hash_password(b'x')}")
    )
    texts = [text for _, text, _ in bad(findings)]
    assert [f"{tmp_path}/users:{line}" in text for line, text in zip((1, 2), texts, strict=True)] == [True, True]
    assert "canary" not in str(findings)


@pytest.mark.parametrize(
    ("names", "users", "secrets"),
    [([], "0 users", "0 secrets"), (["a"], "1 user", "1 secret"), (["a", "b"], "2 users", "2 secrets")],
)
async def test_users_and_secrets_are_counted(tmp_path: Path, names: list[str], users: str, secrets: str) -> None:
    sections = local_users(tmp_path, *(f"{name}:{hash_password(b'x')}" for name in names))
    for name in names:
        Vault.open(tmp_path / "vault", Secret((tmp_path / "vault.key").read_bytes())).set(name, Secret("x"))
    texts = [finding.text for finding in await look(tmp_path, **sections)]
    assert users in texts
    assert f"opens with its key, {secrets}" in texts


async def test_vault_with_the_wrong_key(tmp_path: Path) -> None:
    sections = local_users(tmp_path)
    (tmp_path / "vault.key").write_text(generate_key())
    finding = only(await look(tmp_path, **sections), "problem")
    assert finding.area == f"vault {tmp_path}/vault"


async def test_user_and_group_that_do_not_exist(tmp_path: Path) -> None:
    findings = await look(tmp_path, process={"user": "no-such-user", "group": "no-such-group"}, audit={})
    assert [cure.split()[0] for _, _, cure in bad(findings)] == ["useradd", "groupadd"]


async def test_audit_directory_that_the_service_may_not_write(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    if os.geteuid() != 0:
        closed.chmod(0o500)
    finding = only(await look(tmp_path, audit={"file": str(closed / "audit.jsonl")}), "problem")
    assert "cannot be written" in finding.text
    missing = only(await look(tmp_path, audit={"file": str(tmp_path / "none" / "audit.jsonl")}), "problem")
    assert "does not exist" in missing.text


async def test_files_that_the_service_may_not_read(tmp_path: Path) -> None:
    sections = local_users(tmp_path)
    (tmp_path / "users").chmod(0o600)
    finding = only(await look(tmp_path, process={"user": "nobody"}, **sections), "problem")
    assert f"{tmp_path}/users cannot be read by nobody" in finding.text
    assert f"chmod 640 {tmp_path}/users" in finding.cure


async def test_python_that_the_service_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "home" / "python", tmp_path / "opt"
    for directory in (inside, outside):
        directory.mkdir(parents=True)
    inside.parent.chmod(0o700)
    monkeypatch.setattr(system, "installation", lambda: [inside, outside])
    sections: dict[str, Any] = {"process": {"user": "nobody"}, "audit": {}}
    finding = only(await look(tmp_path, **sections), "warning")
    assert finding.text.startswith(f"nobody cannot read what popproxy is installed in ({inside}):")
    assert "python3 -m venv /opt/" in finding.cure
    inside.parent.chmod(0o711)
    assert bad(await look(tmp_path, **sections)) == []


def test_python_its_environment_and_the_package_are_the_installation() -> None:
    package = Path(popproxy_package.__file__).parent
    assert {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), package.resolve()} <= {*installation()}


async def test_routing_file_with_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "routes").write_text("alice no-such-pool\n")
    (tmp_path / "routes").chmod(0o644)
    routing = {"rules": [{"file": str(tmp_path / "routes")}], "default": "main"}
    finding = only(await look(tmp_path, routing=routing), "problem")
    assert finding.area == "routing"
    assert f"{tmp_path}/routes:1" in finding.text


async def test_log_unknown_users_is_pointed_out(tmp_path: Path) -> None:
    audit = {"file": str(tmp_path / "audit.jsonl"), "log_unknown_users": True}
    assert "log_unknown_users" in only(await look(tmp_path, audit=audit), "warning").text


# Backends


async def probe(directory: Path, server: str, **pool: Any) -> list[Finding]:
    settings = {"servers": [server], **pool}
    if settings.get("tls") == "none":
        settings["allow_cleartext"] = True
    return await look(directory, offline=False, pools={"main": settings}, timeouts={"connect": "1s"})


async def test_backend_that_refuses_connections(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    finding = only(await probe(tmp_path, address, tls="none"), "problem")
    assert (finding.area, finding.text) == ("pool main", f"{address} refuses connections")
    assert finding.cure.startswith("start the server")


async def test_backend_that_does_not_accept(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as waiting:
        for _ in range(3):  # the queue of connections is full then
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        address = f"127.0.0.1:{server.getsockname()[1]}"
        finding = only(await probe(tmp_path, address, tls="none"), "problem")
    assert finding.text == f"{address} does not answer within 1 s (timeouts.connect)"
    assert "firewall" in finding.cure


async def test_backend_without_a_route(tmp_path: Path) -> None:
    finding = only(await probe(tmp_path, "255.255.255.255", tls="none"), "problem")
    assert finding.text == "255.255.255.255:110 cannot be reached: there is no route to its network"
    assert "routes" in finding.cure


@pytest.mark.parametrize(("tls", "when"), [("none", "before its greeting"), ("implicit", "during the TLS handshake")])
async def test_backend_that_hangs_up_at_once(tmp_path: Path, tls: str, when: str) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.transport.abort(), "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    async with server:
        finding = only(await probe(tmp_path, address, tls=tls), "problem")
    assert finding.text == f"{address} closed the connection {when}"


async def test_name_that_does_not_resolve(tmp_path: Path) -> None:
    finding = only(await probe(tmp_path, "no-such-host.invalid", tls="none"), "problem")
    assert "no-such-host.invalid:110 has a name that does not resolve" in finding.text


async def test_backend_that_says_nothing(tmp_path: Path) -> None:
    async with backend(silent=True) as server:
        finding = only(await probe(tmp_path, server, tls="none"), "problem")
    assert "sends no greeting within 1 s" in finding.text


@pytest.mark.parametrize("greeting", [b"-ERR go away\r\n", b"220 mail ESMTP\r\n"])
async def test_backend_that_greets_otherwise(tmp_path: Path, greeting: bytes) -> None:
    async with backend(greeting=greeting) as server:
        finding = only(await probe(tmp_path, server, tls="none"), "problem")
    assert greeting.decode().strip() in finding.text


async def test_declared_capability_that_is_missing(tmp_path: Path) -> None:
    async with backend(capa=("TOP", "EXPIRE 30")) as server:
        findings = await probe(tmp_path, server, tls="none", capabilities=["TOP", "UIDL", "EXPIRE 60"])
    texts = [text for level, text, _ in bad(findings) if level == "problem"]
    assert len(texts) == 2
    assert texts[0].startswith("UIDL is declared")
    assert "EXPIRE 60 is declared" in texts[1]
    assert "EXPIRE 30" in texts[1]


async def test_backend_without_capa_is_only_noted(tmp_path: Path) -> None:
    async with backend(capa=None) as server:
        findings = await probe(tmp_path, server, tls="none")
    assert bad(findings) == []
    assert any("has no CAPA" in finding.text for finding in findings)


async def test_apop_login_needs_a_timestamp(tmp_path: Path) -> None:
    sections = local_users(tmp_path)
    for greeting, expected in ((b"+OK ready\r\n", ["problem"]), (b"+OK <1.2@host>\r\n", [])):
        async with backend(greeting=greeting) as server:
            sections["pools"] = {"main": {"servers": [server], "tls": "none", "login": ["apop"]}}
            findings = await look(tmp_path, offline=False, **sections)
        assert [level for level, text, _ in bad(findings) if "timestamp" in text] == expected


async def test_good_tls_backends(tmp_path: Path) -> None:
    authority = make_authority()
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem())
    context = tls_context(tmp_path, issue(authority, ["127.0.0.1"]))
    async with backend(stls=context) as one, backend(implicit=context) as other:
        findings = await probe(tmp_path, one, tls="stls", ca=str(tmp_path / "ca.pem"))
        findings += await probe(tmp_path, other, tls="implicit", ca=str(tmp_path / "ca.pem"))
    assert bad(findings) == []
    assert sum("its certificate is good" in finding.text for finding in findings) == 2


@pytest.mark.parametrize("mode", ["stls", "implicit"])
@pytest.mark.parametrize(
    ("names", "days", "trusted", "reason", "cure"),
    [
        (["127.0.0.1"], -1, True, "expired", "renew"),
        (["other.example.com"], 7, True, "mismatch", "server_name"),
        (["127.0.0.1"], 7, False, "local issuer", "ca:"),
    ],
)
async def test_backend_certificate_that_is_refused(
    tmp_path: Path, mode: str, names: list[str], days: int, trusted: bool, reason: str, cure: str
) -> None:
    authority = make_authority()
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem())
    context = tls_context(tmp_path, issue(authority, names, days))
    tls = {"ca": str(tmp_path / "ca.pem")} if trusted else {}
    async with backend(**{mode: context}) as server:  # type: ignore[arg-type]
        finding = only(await probe(tmp_path, server, tls=mode, **tls), "problem")
    assert "has a certificate that is refused" in finding.text
    assert reason in finding.text
    assert cure in finding.cure


async def test_backend_without_stls(tmp_path: Path) -> None:
    async with backend() as server:
        finding = only(await probe(tmp_path, server, tls="stls"), "problem")
    assert "refuses STLS" in finding.text


async def test_probe_sends_no_credential(tmp_path: Path) -> None:
    server = MaildirServer({})
    address = await server.start()
    try:
        findings = await probe(tmp_path, str(address), tls="none")
    finally:
        await server.stop()
    assert bad(findings) == []
    assert server.sessions == 1


@pytest.mark.long
def test_hanging_name_server_does_not_hold_up_the_check(tmp_path: Path) -> None:
    pools = {"main": {"servers": ["mail.example.com"], "tls": "none", "allow_cleartext": True}}
    path = write_config(tmp_path, pools=pools, timeouts={"connect": "1s"})
    hanging = f"""
import socket, sys, time
look_up = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: (
    time.sleep(3600) if host == "mail.example.com" else look_up(host, *rest, **more)
)
from popproxy.cli import main

sys.exit(main(["check", "-c", {str(path)!r}]))
"""
    run = subprocess.run([sys.executable, "-c", hanging], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == ExitCode.CONFIG
    assert "no answer from the name servers" in run.stdout


# The command


def test_command_lists_every_problem_and_exits_78(tmp_path: Path) -> None:
    authority = make_authority(days=400)
    pair = write_pair(tmp_path, issue(authority, ["localhost"], -1), "old", chain=(authority,))
    path = str(write_config(tmp_path, tls={"certificates": [pair]}, audit={"file": "/nonexistent/audit.jsonl"}))
    run = popproxy("check", "--offline", "-c", path)
    text = run.stdout.decode()
    assert run.returncode == ExitCode.CONFIG
    assert text.isascii()
    assert "problem  expired on" in text
    assert "problem  the directory /nonexistent does not exist" in text
    assert "2 problems" in text


def test_command_in_json(tmp_path: Path) -> None:
    path = str(write_config(tmp_path))
    run = popproxy("check", "--offline", "--json", "-c", path)
    report = json.loads(run.stdout)
    assert run.returncode == 0
    assert report["ok"] is True
    assert {finding["level"] for finding in report["findings"]} == {"ok"}
    run = popproxy("check", "--json", "-c", "/nonexistent.yaml")
    assert run.returncode == ExitCode.CONFIG
    assert json.loads(run.stdout)["findings"][0]["area"] == "configuration"
