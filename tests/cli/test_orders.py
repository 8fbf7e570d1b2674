"""``popproxy hold``, ``release``, ``move`` and ``orders`` against a running popproxy."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from popproxy.cli.exits import ExitCode
from tests.cli.helpers import Run, popproxy
from tests.peers.process import public_directory
from tests.session.rig import Rig, running

pytestmark = pytest.mark.long


async def command(rig: Rig, *arguments: str) -> Run:
    socket = rig.service._loaded.config.control.socket
    return await asyncio.to_thread(popproxy, *arguments, "--socket", str(socket))


async def test_an_operators_day(tmp_path: Path) -> None:
    with public_directory("orders") as directory:
        sections = {
            "control": {"socket": str(directory / "control.sock")},
            "process": {"state_directory": str(directory)},
            "more_pools": {"new": {"servers": ["127.0.0.1:1"], "tls": "none", "allow_cleartext": True}},
            "routing": {"default": "main"},
        }
        async with running(tmp_path, **sections) as rig:
            told: tuple[tuple[tuple[str, ...], str], ...] = (
                (("orders",), "no orders\n"),
                (("hold", "alice", "--for", "1h", "--refuse"), "alice is held, logins are refused for 1h 0m\n"),
                (("hold", "Bob"), "bob is held, logins wait\n"),
                (("release", "alice"), "alice is released\n"),
                (
                    ("move", "alice", "new", "--server", "127.0.0.1", "--as", "al"),
                    "alice goes to pool new, server 127.0.0.1:1, as al\n",
                ),
            )
            for arguments, expected in told:
                run = await command(rig, *arguments)
                assert (run.returncode, run.stdout.decode()) == (0, expected), run.stderr
            await command(rig, "backends", "drain", "127.0.0.1:1")
            lines = [line.split() for line in (await command(rig, "orders")).stdout.decode().splitlines()]
            assert [line[:2] for line in lines] == [
                ["ORDER", "WHOM"], ["hold", "bob"], ["move", "alice"], ["drain", "127.0.0.1:1"],
            ]  # fmt: skip
            found = json.loads((await command(rig, "orders", "--json")).stdout)
            assert (found["kept"], found["waiting"], found["moves"][0]["backend_user"]) == (True, 0, "al")
            undone = await command(rig, "move", "alice", "--undo")
            assert undone.stdout == b"alice goes where rules and directories say\n"
            refused: tuple[tuple[tuple[str, ...], ExitCode], ...] = (
                (("release", "alice"), ExitCode.NOINPUT),
                (("move", "alice", "--undo"), ExitCode.NOINPUT),
                (("move", "alice"), ExitCode.USAGE),
                (("move", "alice", "nowhere"), ExitCode.USAGE),
                (("hold", "alice", "--for", "soon"), ExitCode.USAGE),
            )
            for arguments, code in refused:
                assert (await command(rig, *arguments)).returncode == code
            recorded = [(record["popproxy.command"], record["event.outcome"]) for record in rig.audit("admin")]
            assert ("hold", "success") in recorded
            assert ("move", "success") in recorded
            assert ("release", "failure") in recorded
            moved = next(record for record in rig.audit("admin") if record["popproxy.command"] == "move")
            assert moved["popproxy.arguments"]["pool"] == "new"


async def test_who_has_no_state_directory_is_told_what_that_means(tmp_path: Path) -> None:
    with public_directory("orders") as directory:
        async with running(tmp_path, control={"socket": str(directory / "control.sock")}) as rig:
            assert b"process.state_directory is not set" in (await command(rig, "hold", "alice")).stdout
            run = await command(rig, "move", "alice", "main")
            assert run.returncode == ExitCode.NOINPUT
            assert b"would show the user an empty maildrop" in run.stderr
