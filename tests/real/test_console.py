"""The operators' console, with OpenSSH's own client: by key and by Kerberos ticket, line by line and on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from popproxy.admin.console import STRANGERS
from popproxy.admin.failed_logins import AT_ONCE, TOLD_APART, FailedLogins
from popproxy.types import Outcome
from tests.peers.console import ConsoleClients, Terminal
from tests.peers.kdc import REALM, realm
from tests.peers.process import public_directory
from tests.peers.proxy import StartProxy, settings
from tests.session.rig import Peer, Rig, running, until

pytestmark = pytest.mark.real

ROLES = {"alice": "operator", "vera": "viewer"}


@contextlib.asynccontextmanager
async def served(tmp_path: Path, **more: Any) -> AsyncIterator[tuple[Rig, ConsoleClients]]:
    with public_directory("console") as directory:
        clients = ConsoleClients(directory, ROLES, **more)
        async with running(tmp_path, console=clients.section) as rig:
            yield rig, clients


def admin(rig: Rig) -> list[tuple[Any, ...]]:
    names = ("user.name", "popproxy.command", "event.outcome", "event.reason", "popproxy.operator_by")
    for record in rig.audit("admin"):
        assert record["source.ip"] == "127.0.0.1"
        assert record["popproxy.operator_via"] == "ssh"
    return [tuple(record.get(name) for name in names) for record in rig.audit("admin")]


async def test_commands_by_key_have_tables_json_exit_statuses_and_records(tmp_path: Path) -> None:
    async with served(tmp_path) as (rig, clients):
        client, _ = await rig.logged_in()
        who = await clients.run("vera", "who", "--json")
        assert (who.status, who.errors) == (0, "")
        (session,) = json.loads(who.output)["sessions"]
        assert session["user"] == "alice"
        assert (await clients.run("vera", "who 127.0.0.0/8")).output.splitlines()[1].startswith(session["id"])
        top = await clients.run("vera", "top")
        assert (top.status, f"{rig.backend.address}  up" in top.output, "alice" in top.output) == (0, True, True)
        looks = (await clients.run("vera", "top --json --times 2 --every 200ms")).output.splitlines()
        assert [json.loads(look)["total"] for look in looks] == [1, 1]

        denied = await clients.run("vera", "kick", "alice")
        assert (denied.status, denied.output) == (os.EX_NOPERM, "")
        assert denied.errors == "popproxy: vera is a viewer, and kick is for operators\n"
        assert await client.silent()
        assert (await clients.run("vera", "trace alice")).status == os.EX_NOPERM
        for wrong, status in (
            ("reboot", os.EX_USAGE), ("kick", os.EX_USAGE), ("kick nobody", os.EX_NOINPUT), ("who --what", os.EX_USAGE),
            ("kick " + "a" * 4096, os.EX_USAGE),
            ("backends drain", os.EX_USAGE), ("top --every soon", os.EX_USAGE), ("'", os.EX_USAGE),
        ):  # fmt: skip
            ended = await clients.run("alice", wrong)
            assert (ended.status, ended.output) == (status, ""), wrong
            assert ended.errors.startswith("popproxy: "), wrong
        kicked = await clients.run("alice", "kick", "alice")
        assert (kicked.status, kicked.output) == (0, "1 session ended\n")
        assert b"ended by an operator" in await client.rest()
        assert "backends drain SERVER" in (await clients.run("alice", "help")).output
        drained = await clients.run("alice", f"backends drain {rig.backend.address} --pool main")
        assert "ordered by an operator" in drained.output
        assert admin(rig) == [
            ("vera", "who", "success", None, "key"), ("vera", "who", "success", None, "key"),
            *[("vera", "top", "success", None, "key")] * 4, ("vera", "kick", "failure", "denied", "key"),
            ("vera", "trace", "failure", "denied", "key"), ("alice", "reboot", "failure", "unknown_command", "key"),
            ("alice", "kick", "failure", "bad_arguments", "key"), ("alice", "kick", "failure", "refused", "key"),
            ("alice", "who", "failure", "bad_arguments", "key"), ("alice", "kick", "failure", "bad_arguments", "key"),
            ("alice", "backends", "failure", "bad_arguments", "key"),
            ("alice", "top", "failure", "bad_arguments", "key"), ("alice", "'", "failure", "bad_arguments", "key"),
            ("alice", "kick", "success", None, "key"), ("alice", "backends drain", "success", None, "key"),
        ]  # fmt: skip


async def test_a_terminal_has_a_prompt_completion_history_and_live_screens(tmp_path: Path) -> None:
    async with served(tmp_path) as (rig, clients):
        client, backend = await rig.logged_in()
        terminal = Terminal(clients.command("alice", options=("-tt",)))
        await terminal.sees("popproxy, alice \\(operator\\).*popproxy> ")
        terminal.type("wh\t\r")
        await terminal.sees("who \r?\n.*SESSION.*alice.*popproxy> ")
        terminal.type("\x1b[A\r")  # the line before
        await terminal.sees("SESSION.*alice.*popproxy> ")
        terminal.type("backends \t\t")
        await terminal.sees("drain  list  maintenance  resume")
        terminal.type("\x15top --every 200ms\r")
        await terminal.sees("\x1b\\[\\?1049h.*octets/s.*octets/s")  # again and again
        terminal.type("q")
        await terminal.sees("\x1b\\[\\?1049l.*popproxy> ")
        terminal.type("trace alice\r")
        await terminal.sees("tracing alice for 10m 0s, 1 running session")
        await client.send("NOOP\r\n")
        await backend.expect("NOOP")
        await backend.send("+OK\r\n")
        await terminal.sees("C: NOOP.*S: \\+OK")
        terminal.type("\x03")
        await terminal.sees("popproxy> ")
        await until(lambda: not rig.parts.tracing.active, "the end of the trace")
        terminal.type("nonsense\r")
        await terminal.sees("no such command.*popproxy> ")
        terminal.type("exit\r")
        assert await terminal.ends() == 0
        streams = [(r["popproxy.command"], r["popproxy.stream"]) for r in rig.audit("admin") if "popproxy.stream" in r]
        assert streams == [("top", "begun"), ("top", "ended"), ("trace", "begun"), ("trace", "ended")]


async def test_there_is_no_other_way_in_and_nothing_but_commands(tmp_path: Path) -> None:
    async with served(tmp_path, connections=2) as (rig, clients):
        for user, key in (("vera", "alice"), ("root", "alice"), ("mallory", "vera")):
            ended = await clients.run(user, "who", key=key)
            assert (ended.status, ended.output) == (255, "")
            assert "Permission denied (publickey)" in ended.errors
        costly = await clients.run("alice", "who", options=("-o", "KexAlgorithms=diffie-hellman-group18-sha512"))
        assert (costly.status, "no matching key exchange method found" in costly.errors) == (255, True), costly.errors
        sftp = await clients.run("alice", "sftp", options=("-o", "SessionType=subsystem"))
        assert sftp.status != 0
        forwarding = await clients.run("alice", options=("-W", f"127.0.0.1:{rig.port()}"))
        assert forwarding.status == 255
        assert "open failed" in forwarding.errors
        assert rig.metrics.connections["pop3"] == 0
        remote = await clients.run("alice", "who", options=("-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"))
        assert "remote port forwarding failed" in remote.errors
        os.chmod(clients.directory / "alice.keys", 0o666)
        assert (await clients.run("alice", "who")).status == 255  # others could write into it
        os.chmod(clients.directory / "alice.keys", 0o644)
        rig.expected_errors.append("keys of an operator are of no use")

        waiting = [Terminal(clients.command(name, options=("-tt",))) for name in ROLES]
        for terminal in waiting:
            await terminal.sees("popproxy> ")
        assert (await clients.run("alice", "who")).status == os.EX_UNAVAILABLE  # one too many
        for terminal in waiting:
            terminal.type("\x04")
            assert await terminal.ends() == 0
        assert {entry[1] for entry in admin(rig)} == set()
        logins = [
            tuple(record.get(name) for name in ("user.name", "event.reason", "popproxy.attempts", "source.ip"))
            for record in rig.audit("operator_login") if record["event.outcome"] == "failure"
        ]  # fmt: skip
        assert logins == [
            ("vera", "bad_credentials", 1, "127.0.0.1"), (None, "unknown_operator", 1, "127.0.0.1"),
            (None, "unknown_operator", 1, "127.0.0.1"), ("alice", "bad_credentials", 1, "127.0.0.1"),
        ]  # fmt: skip
        (first, *_) = (one for one in rig.audit("operator_login") if one["event.outcome"] == "success")
        assert (first["user.name"], first["popproxy.operator_by"]) == ("alice", "key")


async def test_all_workers_together_take_so_many_operators(start_proxy: StartProxy) -> None:
    with public_directory("console") as directory:
        clients = ConsoleClients(directory, ROLES, connections=1)
        configuration = settings("127.0.0.1:1", workers=2, console=clients.section)
        await asyncio.to_thread(start_proxy, configuration)
        terminal = Terminal(clients.command("alice", options=("-tt",)))
        await terminal.sees("popproxy> ")
        for _ in range(4):
            ended = await clients.run("vera", "stats")
            assert (ended.status, ended.errors) == (os.EX_UNAVAILABLE, "popproxy: too many operators\n")
        terminal.type("\x04")
        assert await terminal.ends() == 0
        async with asyncio.timeout(60):
            while (await clients.run("vera", "stats")).status:
                pass


async def test_whoever_only_connects_keeps_no_operator_out(tmp_path: Path) -> None:
    """From one address, then from many; each has the same 30 seconds, and goes earlier where others need the room."""
    async with served(tmp_path, connections=1) as (rig, clients):
        held: list[Peer] = []
        for number in range(2 * STRANGERS):
            sock = socket.create_connection(
                ("127.0.0.1", clients.port),
                source_address=(f"127.0.0.{number % 50 + 2}" if number > 40 else "127.0.0.2", 0),
            )
            held.append(Peer(sock))
            await held[-1].line()
            if number % 16 == 15:
                assert (await clients.run("vera", "stats")).status == 0
        console = rig.service._console
        assert console is not None
        await until(lambda: len(console._connections) <= STRANGERS, "those who only wait have gone")
        assert (await clients.run("vera", "stats")).status == 0
        assert rig.audit("operator_login")[-1]["event.outcome"] == "success"
        for peer in held:
            peer.sock.close()
        await until(lambda: not console._connections, "nobody is left")
        assert not len(console._strangers)


async def test_nobody_goes_on_in_another_name(tmp_path: Path) -> None:
    class Changing(asyncssh.SSHClient):
        def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
            self.connection, self.keys = conn, [key("vera"), key("alice")]

        def public_key_auth_requested(self) -> asyncssh.SSHKey | None:
            if len(self.keys) == 1:
                self.connection._username = "alice"
            return self.keys.pop(0) if self.keys else None

    async with served(tmp_path) as (rig, clients):

        def key(name: str) -> asyncssh.SSHKey:
            return asyncssh.read_private_key(clients.directory / f"{name}.key")

        with pytest.raises(asyncssh.DisconnectError, match="another name"):
            await asyncssh.connect(
                "127.0.0.1", clients.port, username="bob", known_hosts=None, config=[], agent_path=None,
                client_factory=Changing, client_keys=None,
            )  # fmt: skip
        await until(lambda: rig.audit("operator_login"), "it is on record")
        assert [one["event.outcome"] for one in rig.audit("operator_login")] == ["failure"]


async def test_a_flood_of_failed_logins_is_counted_in_a_few_records() -> None:
    written: list[dict[str, Any]] = []

    class Recorder:
        def event(self, action: str, outcome: Outcome, **fields: object) -> None:
            written.append({"action": action, "outcome": outcome, **fields})

    failed = FailedLogins(Recorder())
    for number in range(1000):
        failed.add(f"192.0.2.{number % 200}", "alice" if number % 2 else None)
    assert len(written) == AT_ONCE
    failed.close()
    assert len(written) <= AT_ONCE + TOLD_APART + 1
    assert sum(one["popproxy.attempts"] for one in written) == 1000
    assert written[-1]["event.reason"] == "many"
    failed.add("192.0.2.1", "alice")
    assert written[-1] | {"user.name": "alice", "source.ip": "192.0.2.1", "popproxy.attempts": 1} == written[-1]
    failed.close()


async def test_who_says_nothing_is_logged_out(tmp_path: Path) -> None:
    async with served(tmp_path, idle="300ms") as (_, clients):
        terminal = Terminal(clients.command("vera", options=("-tt",)))
        await terminal.sees("idle for too long")
        assert await terminal.ends() == 0
        silent = await clients.run("vera", options=("-N",))
        assert silent.status == 255


async def test_a_ticket_is_as_good_as_a_key(tmp_path: Path) -> None:
    with realm() as kdc, public_directory("tickets") as directory:
        for name in ("alice", "alice/admin", "vera", "mallory"):
            kdc.user(name)
        kdc.service("host/localhost")
        keytab = kdc.keytab("host/localhost")
        config, before = str(kdc.config), os.environ.get("KRB5_CONFIG")
        os.environ["KRB5_CONFIG"] = config
        try:
            more = {"keytab": str(keytab), "host": "localhost"}
            clients = ConsoleClients(directory, ROLES, **more)
            clients.section["operators"] = {
                "alice": {"role": "operator", "principals": [f"alice/admin@{REALM}"]},
                "vera": {"role": "viewer", "principals": [f"vera@{REALM}"]},
            }
            async with running(tmp_path, console=clients.section) as rig:
                client, _ = await rig.logged_in()

                async def by_ticket(user: str, principal: str, *words: str) -> Any:
                    cache = await asyncio.to_thread(kdc.kinit, principal)
                    return await clients.run(user, *words, key=None, env={"KRB5CCNAME": f"FILE:{cache}"})

                who = await by_ticket("vera", "vera", "who --json")
                assert [one["user"] for one in json.loads(who.output)["sessions"]] == ["alice"], who
                assert "alice" in (await by_ticket("vera", "vera", "top")).output
                assert (await by_ticket("vera", "vera", "kick alice")).status == os.EX_NOPERM
                for user, principal in (("alice", "alice"), ("alice", "mallory"), ("vera", "alice/admin")):
                    assert (await by_ticket(user, principal, "who")).status == 255
                kicked = await by_ticket("alice", "alice/admin", "kick alice")
                assert (kicked.status, kicked.output) == (0, "1 session ended\n")
                await client.rest()
                vera, alice = f"vera@{REALM}", f"alice/admin@{REALM}"
                assert admin(rig) == [
                    ("vera", "who", "success", None, vera), ("vera", "top", "success", None, vera),
                    ("vera", "top", "success", None, vera), ("vera", "kick", "failure", "denied", vera),
                    ("alice", "kick", "success", None, alice),
                ]  # fmt: skip
        finally:
            os.environ.pop("KRB5_CONFIG")
            if before is not None:
                os.environ["KRB5_CONFIG"] = before
