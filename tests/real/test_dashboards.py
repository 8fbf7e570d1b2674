"""A real Prometheus scrapes a busy popproxy that does everything: every expression of every dashboard has data."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from popproxy.auth.hashes import hash_password
from tests.observe.test_prometheus import ask, dashboard_expressions, prometheus_server
from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.dovecot import dovecot
from tests.peers.kdc import realm
from tests.peers.line_client import LineClient
from tests.peers.process import free_port, public_directory, wait_until
from tests.peers.proxy import Proxy, proxies
from tests.peers.ssh import Keys
from tests.real.kerberos_rig import SERVICE, configuration, give_to_service, master_dovecot

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def busy(authority: Authority, server_certificate: CertificateFiles) -> Iterator[tuple[Proxy, dict[str, str]]]:
    """Kerberos, a directory, TLS to a server, a dead server, a tunnel that does not come about; and passwords."""
    with contextlib.ExitStack() as stack:
        it = stack.enter_context(realm())
        passwords = {"alice": it.user("alice"), "erin": it.user("erin")}
        it.service(SERVICE)
        main, master = stack.enter_context(master_dovecot())
        shop = stack.enter_context(dovecot(server_certificate))
        gss = stack.enter_context(dovecot(mechanisms="plain gssapi"))
        directory = stack.enter_context(public_directory("busy"))
        complete = configuration(it, main, server_certificate, directory, password=master, cache="1s", deadline="5s")
        passwords["bob"] = shop.users["bob"]
        users = directory / "users.db"
        with contextlib.closing(sqlite3.connect(users)) as table:
            table.execute("CREATE TABLE users (login text, password text)")
            table.execute("INSERT INTO users VALUES (?, ?)", ("bob", hash_password(passwords["bob"].encode())))
            table.commit()
        keys = Keys(directory, free_port())
        give_to_service(directory, *directory.iterdir())
        clear = {"listen": ["127.0.0.1:0"], "tls": "none", "cleartext_networks": ["127.0.0.0/8"]}
        complete["listeners"] += [
            {"name": "shop", "authenticate": ["shop"], **clear},
            {"name": "direct", "authenticate": ["passthrough"], **clear},
        ]
        complete["directories"] = {
            "shop": {"sql": {"url": f"sqlite:{users}", "query": "SELECT password FROM users WHERE login = :user"}}
        }
        complete["tunnels"] = {"jump": keys.tunnel()}
        plain = {"tls": "none", "allow_cleartext": True}
        complete["pools"] |= {
            "shop": {"servers": [f"localhost:{shop.port}"], "tls": "stls", "ca": str(authority.ca)},
            "tickets": {
                "servers": [f"127.0.0.1:{gss.port}"],
                "login": ["kerberos-service"],
                "kerberos": {"principal": f"pop/nowhere@{it.name}"},
                **plain,
            },
            "dead": {"servers": [f"127.0.0.1:{free_port()}"], **plain},
            "far": {"servers": ["far.internal:110"], "tunnel": "jump", **plain},
        }
        complete["routing"] = {
            "rules": [
                {"user": "bob", "pool": "shop"}, {"user": "carol", "pool": "dead"}, {"user": "dave", "pool": "far"},
                {"user": "erin", "pool": "tickets"},
            ],
            "default": "main",
        }  # fmt: skip
        complete["limits"] = {"sessions_per_user": 1, "sessions_per_user_and_address": 1}
        start = stack.enter_context(proxies())
        yield start(complete, env=it.environment), passwords


def login(proxy: Proxy, listener: str, user: str, password: str, *then: str) -> None:
    with LineClient(proxy.port(listener)) as client:
        client.line()
        client.command(f"USER {user}")
        if client.command(f"PASS {password}").startswith(b"+OK"):
            for command in (*then, "QUIT"):
                client.command(command)


def load(proxy: Proxy, passwords: dict[str, str], enough: threading.Event) -> None:
    with LineClient(proxy.port("direct")) as holding:
        holding.line()
        holding.command("USER bob")
        assert holding.command(f"PASS {passwords['bob']}").startswith(b"+OK")
        while not enough.is_set():
            login(proxy, "pop3", "alice", passwords["alice"], "STAT", "NOOP")
            login(proxy, "shop", "bob", passwords["bob"])  # one session too many
            login(proxy, "direct", "carol", canary("carol"))
            login(proxy, "direct", "dave", canary("dave"))
            login(proxy, "pop3", "erin", passwords["erin"])
            login(proxy, "pop3", "alice", canary("wrong"))
            with LineClient(proxy.port("kpop")) as stranger:
                stranger.send(b"no kpop at all\r\n")
            holding.command("NOOP")
            assert proxy.command("stats").returncode == 0


def test_every_expression_of_every_dashboard_has_data(busy: tuple[Proxy, dict[str, str]], tmp_path: Path) -> None:
    proxy, passwords = busy
    enough = threading.Event()
    failed: list[BaseException] = []

    def loading() -> None:
        try:
            load(proxy, passwords, enough)
        except BaseException as error:
            failed.append(error)

    with public_directory("prometheus") as directory:
        with prometheus_server(directory, proxy.configuration["http"]["listen"]) as port:
            thread = threading.Thread(target=loading)
            thread.start()
            try:
                missing = dict.fromkeys(dashboard_expressions())

                def all_have_data() -> bool:
                    assert thread.is_alive(), failed
                    for where, asked in list(missing):
                        if any(not math.isnan(float(found["value"][1])) for found in ask(port, asked)):
                            del missing[where, asked]
                    return not missing

                with contextlib.suppress(AssertionError):  # which says less than what is missing
                    wait_until(all_have_data, "data for every panel", 90)
                assert sorted(missing) == []
            finally:
                enough.set()
                thread.join(60)
        assert failed == []
