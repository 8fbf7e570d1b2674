"""A ticket proves who somebody is, not that his account is open: the users file may have closed it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.certs import CertificateFiles
from tests.peers.kdc import Realm, realm
from tests.peers.kpop_client import KpopClient
from tests.peers.process import public_directory, require, wait_until
from tests.peers.proxy import Proxy, proxies
from tests.real.kerberos_rig import SERVICE, configuration, give_to_service, master_dovecot

REFUSED = "-ERR [AUTH] authentication failed"


@pytest.fixture(scope="module")
def home_realm() -> Iterator[Realm]:
    with realm() as it:
        for user in ("alice", "bob", "asmith"):
            it.user(user)
        it.service(SERVICE)
        yield it


@pytest.fixture(scope="module")
def proxy(home_realm: Realm, server_certificate: CertificateFiles) -> Iterator[Proxy]:
    """The users file disables alice, whom asmith@REALM also is; bob is not in it. Nobody has a password here."""
    with contextlib.ExitStack() as stack:
        backend, password = stack.enter_context(master_dovecot())
        directory = stack.enter_context(public_directory("accounts"))
        start = stack.enter_context(proxies())
        users, table = directory / "users", directory / "principals"
        users.write_text("Alice:!locked\n")
        table.write_text(f"asmith@{home_realm.name} alice\n")
        give_to_service(users, table)
        complete = configuration(
            home_realm, backend, server_certificate, directory, password=password, rules=[{"file": str(table)}]
        )
        complete["users"] = {"file": str(users)}
        complete["listeners"].append(
            {**complete["listeners"][0], "name": "both", "authenticate": ["users", "kerberos"]}
        )
        yield start(complete, env=home_realm.environment)


@contextlib.contextmanager
def judged(proxy: Proxy, expected: str) -> Iterator[None]:
    """The login tried meanwhile comes out like this in the audit log."""
    before = len(proxy.audit("auth"))
    yield
    wait_until(lambda: len(proxy.audit("auth")) > before, "the record of the login")
    (record,) = proxy.audit("auth")[before:]
    assert record.get("event.reason", "none") == expected
    assert record["event.outcome"] == ("success" if expected == "none" else "failure")


@pytest.mark.parametrize(("user", "expected"), [("alice", "disabled"), ("asmith", "disabled"), ("bob", "none")])
def test_ticket_by_gssapi(proxy: Proxy, home_realm: Realm, tmp_path: Path, user: str, expected: str) -> None:
    ccache = home_realm.kinit(user)
    command = [
        require("curl"),
        "-sv",
        "--login-options",
        "AUTH=GSSAPI",
        "--user",
        ":",
        f"pop3://localhost:{proxy.port()}",
    ]
    environment = {
        **home_realm.environment,
        "KRB5CCNAME": f"FILE:{ccache}",
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
    }
    with judged(proxy, expected):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 0) == (expected == "none"), done.stderr
    assert (REFUSED in done.stderr) == (expected != "none")


@pytest.mark.parametrize(("user", "expected"), [("alice", "disabled"), ("asmith", "disabled"), ("bob", "none")])
def test_ticket_by_kpop(proxy: Proxy, home_realm: Realm, user: str, expected: str) -> None:
    ccache = home_realm.kinit(user)
    with judged(proxy, expected), KpopClient(proxy.port("kpop")) as client:
        client.authenticate(home_realm.config, ccache, f"{SERVICE}@{home_realm.name}")
        client.line()
        client.command(f"USER {user}")
        assert client.command("PASS x").decode() == ("+OK Logged in" if expected == "none" else REFUSED)


@pytest.mark.parametrize("listener", ["pop3", "both"])
@pytest.mark.parametrize(("user", "expected"), [("alice", "disabled"), ("asmith", "disabled"), ("bob", "none")])
def test_password_that_the_kdc_accepts(
    proxy: Proxy, home_realm: Realm, listener: str, user: str, expected: str
) -> None:
    address = ("127.0.0.1", proxy.port(listener))
    with judged(proxy, expected), socket.create_connection(address, timeout=60) as sock, sock.makefile("rwb") as file:
        file.readline()
        file.write(f"USER {user}\r\nPASS {home_realm.passwords[user]}\r\n".encode())
        file.flush()
        file.readline()
        answer = file.readline().decode().strip()
    assert answer == ("+OK Logged in" if expected == "none" else REFUSED)


@pytest.mark.parametrize(("user", "expected"), [("alice", "disabled"), ("asmith", "disabled"), ("bob", "none")])
def test_explain_tells_what_happens(proxy: Proxy, home_realm: Realm, user: str, expected: str) -> None:
    done = proxy.command("explain", f"{user}@{home_realm.name}")
    assert done.returncode == (0 if expected == "none" else 67), done.stdout + done.stderr
    assert ("refused: disabled in" in done.stdout) == (expected != "none")
    assert ("master: USER bob*popproxy and PASS" in done.stdout) == (expected == "none")
    done = proxy.command("explain", user, "--listener", "both")
    assert done.returncode == (0 if expected == "none" else 67), done.stdout + done.stderr
    assert f"{user}@{home_realm.name}" in done.stdout or expected == "disabled"
