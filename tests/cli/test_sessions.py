"""``popproxy who``, ``kick`` and ``stats`` against a running popproxy."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from popproxy.cli.exits import ExitCode
from tests.cli.helpers import Run, popproxy
from tests.peers.process import public_directory
from tests.session.rig import Rig, running, until


@contextlib.asynccontextmanager
async def proxy(tmp_path: Path, **sections: Any) -> AsyncIterator[Rig]:
    with public_directory("sessions") as directory:
        async with running(tmp_path, control={"socket": str(directory / "control.sock")}, **sections) as made:
            yield made


async def command(rig: Rig, *arguments: str) -> Run:
    socket = rig.service._loaded.config.control.socket
    return await asyncio.to_thread(popproxy, *arguments, "--socket", str(socket))


async def test_who_is_there_is_shown_and_can_be_ended_without_a_deletion(tmp_path: Path) -> None:
    async with proxy(tmp_path) as rig:
        assert (await command(rig, "who")).stdout == b"no sessions\n"
        client, backend = await rig.logged_in()
        waiting = await rig.greeted()
        (session,) = json.loads((await command(rig, "who", "--json")).stdout)["sessions"]
        assert (session["user"], session["listener"], session["phase"]) == ("alice", "pop3", "transaction")
        assert (session["mechanism"], session["tls"], session["pool"]) == ("USER", "", "main")
        assert session["backend"] == rig.backend.address
        assert session["octets"]["from_client"] > 0 < session["octets"]["to_client"]
        table = (await command(rig, "who", "--all", "127.0.0.0/8")).stdout.decode().splitlines()
        assert table[0].split() == [
            "SESSION",
            "USER",
            "ADDRESS",
            "LISTENER",
            "MECHANISM",
            "TLS",
            "SERVER",
            "FOR",
            "IN",
            "OUT",
        ]
        assert sorted(line.split()[1] for line in table[1:]) == ["-", "alice"]
        assert (await command(rig, "who", "192.0.2.1")).stdout == b"no sessions\n"

        await client.send("DELE 1\r\n")
        await backend.expect("DELE 1")
        await backend.send("+OK\r\n")
        await client.expect("+OK")
        run = await command(rig, "kick", "ALICE")
        assert (run.returncode, run.stdout) == (0, b"1 session ended\n"), run.stderr
        assert await client.rest() == b"-ERR [SYS/TEMP] ended by an operator, nothing was deleted\r\n"
        assert b"QUIT" not in await backend.rest()
        assert backend.ended == "reset"
        run = await command(rig, "kick", session["id"])
        assert (run.returncode, run.stderr) == (ExitCode.NOINPUT, b"popproxy: there is no such session\n")
        run = await command(rig, "kick", "127.0.0.1")
        assert run.stdout == b"1 session ended\n"
        assert await waiting.rest() == b"-ERR [SYS/TEMP] ended by an operator, try again later\r\n"

        await until(lambda: len(rig.audit("session_end")) == 2, "both ends on record")
        ends = rig.audit("session_end")
        assert {end["event.reason"] for end in ends} == {"kicked"}
        assert next(end for end in ends if end.get("user.name"))["pop3.abandoned_total"] == 1
        kicks = [record for record in rig.audit("admin") if record["popproxy.command"] == "kick"]
        assert [record["popproxy.arguments"] for record in kicks] == [
            {"user": "ALICE"}, {"session": session["id"]}, {"network": "127.0.0.1"},
        ]  # fmt: skip
        assert [record["event.outcome"] for record in kicks] == ["success", "failure", "success"]


async def test_who_has_said_quit_is_left_alone(tmp_path: Path) -> None:
    async with proxy(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await client.send("QUIT\r\n")
        await backend.expect("QUIT")
        run = await command(rig, "kick", "alice")
        assert run.stdout == b"0 sessions ended\n1 session left alone: the server is answering QUIT\n"
        await backend.send("+OK bye\r\n")
        await client.expect("+OK bye")


async def test_stats_add_up(tmp_path: Path) -> None:
    async with proxy(tmp_path) as rig:
        await rig.logged_in()
        result = json.loads((await command(rig, "stats", "--json")).stdout)
        assert result["sessions"] == {"authorization": 0, "transaction": 1, "update": 0}
        assert result["logins"] == {"success": 1, "failure": 0, "error": 0}
        assert result["backends"] == {rig.backend.address: {"up": True, "sessions": 1}}
        assert result["audit"] == {"healthy": True, "dropped": 0}
        text = (await command(rig, "stats")).stdout.decode()
        assert "logins" in text
        assert f"{rig.backend.address}  reached         1" in text


async def test_nonsense_is_refused(tmp_path: Path) -> None:
    async with proxy(tmp_path) as rig:
        run = await command(rig, "kick", "\x00")
        assert run.returncode == ExitCode.USAGE
        assert b"no user name" in run.stderr
