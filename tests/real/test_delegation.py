"""Kerberos behind the proxy: users reach a Dovecot that takes nothing but tickets, as themselves, with no password."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from popproxy.auth.hashes import hash_password
from tests.peers.canaries import canary
from tests.peers.kpop_client import KpopClient
from tests.peers.line_client import LineClient
from tests.peers.messages import wire
from tests.peers.process import public_directory
from tests.real.delegation_rig import Grounds, curl, let_in_by_backend, login_record
from tests.real.kerberos_rig import MESSAGE


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
    let_in_by_backend(it, "user=<alice>, method=GSSAPI")


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
    let_in_by_backend(it, "user=<alice>, method=GSSAPI")


@pytest.mark.parametrize("judge", ["kerberos", "users", "apop"])
def test_user_without_a_ticket_reaches_a_server_that_wants_tickets(ground: Grounds, judge: str) -> None:
    """After a password that the KDC or the users file has judged, and after APOP."""
    secret = canary("own")
    with public_directory("users") as directory:
        users = directory / "users"
        users.write_text(f"alice:{hash_password(secret.encode())}\n")
        it = ground.site(
            ["kerberos-transition"],
            listener={
                "gssapi": False,
                "apop": judge == "apop",
                "authenticate": ["users" if judge == "users" else "kerberos"],
            },
            vault={"alice": secret} if judge == "apop" else None,
            users=users if judge == "users" else None,
        )
        with LineClient(it.proxy.port()) as client:
            greeting = client.line()
            if judge == "apop":
                challenge = greeting[greeting.index(b"<") :] + secret.encode()
                digest = hashlib.md5(challenge, usedforsecurity=False).hexdigest()
                answer = client.command(f"APOP alice {digest}")
            else:
                client.command("USER alice")
                answer = client.command(f"PASS {secret if judge == 'users' else it.realm.passwords['alice']}")
            assert answer == b"+OK Logged in", it.proxy.log()
            assert client.command("RETR 1").startswith(b"+OK")
            assert client.body() == wire(MESSAGE) + b".\r\n"
            client.command("QUIT")
        record = login_record(it)
    assert record["popproxy.strategy"] == "kerberos-transition"
    assert record["auth.mechanism"] == ("APOP" if judge == "apop" else "USER")
    let_in_by_backend(it, "user=<alice>, method=GSSAPI")
