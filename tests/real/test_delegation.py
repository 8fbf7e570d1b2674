"""Kerberos behind the proxy: users reach a Dovecot that takes nothing but tickets, as themselves, with no password."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers.certs import CertificateFiles
from tests.peers.kpop_client import KpopClient
from tests.peers.messages import wire
from tests.peers.process import require
from tests.real.delegation_rig import Grounds, grounds
from tests.real.kerberos_rig import Site

MESSAGE = b"Subject: delegated\n\nNo password anywhere.\n"


@pytest.fixture(scope="module")
def module_grounds(server_certificate: CertificateFiles) -> Iterator[Grounds]:
    with grounds(server_certificate) as it:
        yield it


@pytest.fixture
def ground(module_grounds: Grounds) -> Grounds:
    module_grounds.backend.deliver("alice", [MESSAGE])
    module_grounds.backend.deliver("bob", [MESSAGE])
    return module_grounds


def curl(it: Site, home: Path, *options: str, user: str = "alice") -> tuple[int, str]:
    command: list[str | Path] = [
        require("curl"), "-sS", "--login-options", "AUTH=GSSAPI", "--user", ":", *options,
        f"pop3://localhost:{it.proxy.port()}/1",
    ]  # fmt: skip
    done = it.run(command, home, user)
    return done.returncode, done.stdout


def login_record(it: Site) -> dict[str, Any]:
    """Of the session that ended last."""
    it.proxy.settled()
    (record,) = [record for record in it.proxy.sessions()[-1] if record["event.action"] == "login"]
    return record


def at_backend(it: Site) -> str:
    """Whom the Dovecot has let in last, and how."""
    lines = [line for line in (it.backend.directory / "dovecot.log").read_text().splitlines() if "Login: user" in line]
    return lines[-1].partition("Login: ")[2].partition(", rip")[0]


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("kerberos-forwarded", ("--delegation", "always")),
        ("kerberos-delegated", ()),
        ("kerberos-delegated", ("--delegation", "always")),
        ("kerberos-transition", ()),
        ("kerberos-service", ()),
    ],
)
def test_gssapi_user_reaches_a_server_that_wants_tickets(
    ground: Grounds, home: Path, strategy: str, options: tuple[str, ...]
) -> None:
    it = ground.site([strategy])
    status, output = curl(it, home, *options)
    assert status == 0, output + it.proxy.log()
    assert output.replace("\r\n", "\n").encode() == MESSAGE
    record = login_record(it)
    assert record["popproxy.strategy"] == strategy
    assert record["popproxy.mailbox"] == "alice"
    assert at_backend(it) == "user=<alice>, method=GSSAPI"


@pytest.mark.parametrize("strategy", ["kerberos-delegated", "kerberos-transition", "kerberos-service"])
def test_kpop_user_reaches_a_server_that_wants_tickets(ground: Grounds, strategy: str) -> None:
    it = ground.site([strategy])
    with KpopClient(it.proxy.port("kpop")) as client:
        client.authenticate(it.realm.config, it.tickets["alice"], it.service)
        client.line()
        assert client.command("USER bob").startswith(b"+OK")
        assert client.command("PASS x") == b"-ERR [AUTH] authentication failed"
        assert client.command("USER alice").startswith(b"+OK")
        assert client.command("PASS hej") == b"+OK Logged in", it.proxy.log()
        assert client.command("RETR 1").startswith(b"+OK")
        assert client.body() == wire(MESSAGE) + b".\r\n"
        assert client.command("QUIT").startswith(b"+OK")
    assert login_record(it)["popproxy.strategy"] == strategy
    assert at_backend(it) == "user=<alice>, method=GSSAPI"
