"""All ways of operators into a real popproxy of two workers: control socket, console, status page, top and trace."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.peers.canaries import canary
from tests.peers.certs import CertificateFiles
from tests.peers.console import ConsoleClients
from tests.peers.line_client import LineClient
from tests.peers.process import public_directory, wait_until
from tests.peers.proxy import POPPROXY, Proxy, StartProxy, settings
from tests.peers.scripted import ScriptedBackend, in_thread
from tests.real.kerberos_rig import give_to_service

pytestmark = pytest.mark.real


@dataclass(frozen=True)
class Seat:
    """A popproxy that operators can get at."""

    proxy: Proxy
    clients: ConsoleClients
    token: str


@pytest.fixture
def seat(start_proxy: StartProxy, server_certificate: CertificateFiles) -> Iterator[Seat]:
    with in_thread(ScriptedBackend([b"x" * 1000])) as backend, public_directory("operators") as directory:
        clients = ConsoleClients(directory, {"alice": "operator", "vera": "viewer"})
        token = canary("token")
        (directory / "token").write_text(token)
        (directory / "token").chmod(0o600)
        give_to_service(directory / "alice.keys", directory / "vera.keys")
        complete = settings(backend.address, server_certificate, console=clients.section)
        complete["workers"] = 2
        complete["http"] = {"token": {"file": str(directory / "token")}}
        yield Seat(start_proxy(complete), clients, token)


def logged_in(proxy: Proxy, user: str) -> LineClient:
    client = LineClient(proxy.port())
    client.line()
    client.command(f"USER {user}")
    assert client.command(f"PASS {canary()}").startswith(b"+OK")
    return client


def test_every_way_of_operators_shows_the_same_sessions(seat: Seat) -> None:
    proxy = seat.proxy
    with logged_in(proxy, "carol") as carol, logged_in(proxy, "dave") as dave:
        here = {one["id"] for one in json.loads(proxy.command("who", "--json").stdout)["sessions"]}
        assert len(here) == 2
        console = asyncio.run(seat.clients.run("vera", "who", "--json"))
        assert {one["id"] for one in json.loads(console.output)["sessions"]} == here, console.errors
        asked = urllib.request.Request(
            f"http://{proxy.configuration['http']['listen']}/api/sessions",
            headers={"Authorization": f"Bearer {seat.token}"},
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert {one["id"] for one in json.load(answer)["sessions"]} == here
        look = json.loads(proxy.command("top", "--json", "--times", "1").stdout)
        assert {one["id"] for one in look["sessions"]} == here

        def page_knows() -> bool:
            status = json.loads(proxy.get("/api/status")[1])
            assert [one["name"] for one in status["listeners"]] == ["pop3", "pop3s"]
            return bool(status["sessions"]["transaction"] == 2 and status["mechanisms"]["USER"]["success"] == 2)

        wait_until(page_knows, "the status page to know both sessions")

        command = [str(POPPROXY), "trace", "carol", "--json", "-c", str(proxy.file)]
        trace = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        try:
            assert trace.stdout is not None
            assert len(json.loads(trace.stdout.readline())["sessions"]) == 1
            dave.command("NOOP")
            carol.send(b"RETR 1\r\n")
            told = [json.loads(trace.stdout.readline()) for _ in range(3)]
            assert (told[0]["kind"], told[0]["text"]) == ("client", "RETR 1")
            assert told[1]["text"].startswith("+OK")
            assert (told[2]["text"], told[2]["octets"]) == ("", 1002)
            kicked = asyncio.run(seat.clients.run("alice", "kick", "carol"))
            assert (kicked.status, kicked.output) == (0, "1 session ended\n"), kicked.errors
            ended = {json.loads(trace.stdout.readline())["text"] for _ in range(2)}
            assert ended == {
                "the session has ended: kicked", "-ERR [SYS/TEMP] ended by an operator, nothing was deleted",
            }  # fmt: skip
        finally:
            trace.kill()
            trace.communicate()
        wait_until(lambda: bool(proxy.audit("worker_command")), "the record of the other worker")
        (passed_on,) = proxy.audit("worker_command")
        assert (passed_on["popproxy.command"], passed_on["popproxy.arguments"]) == ("kick", {"user": "carol"})
        wait_until(lambda: bool(orders(proxy, "kick")), "the record of the order")
        (ordered,) = orders(proxy, "kick")
        assert passed_on["chain.segment"] != ordered["chain.segment"], "written by another worker"
        wanted = {("who", None), ("who", "ssh"), ("who", "http"), ("kick", "ssh"), ("top", None), ("trace", None)}

        def recorded() -> bool:
            records = proxy.audit("admin")
            return wanted <= {(one["popproxy.command"], one.get("popproxy.operator_via")) for one in records}

        wait_until(recorded, "a record of every command")


def orders(proxy: Proxy, command: str) -> list[dict[str, object]]:
    return [one for one in proxy.audit("admin") if one["popproxy.command"] == command]
