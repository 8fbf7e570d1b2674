"""``popproxy penalties`` against a running popproxy."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from popproxy.cli.exits import ExitCode
from popproxy.cli.output import print_table
from tests.cli.helpers import Run, popproxy
from tests.peers.process import public_directory
from tests.session.rig import Rig, running, users_file


@contextlib.asynccontextmanager
async def proxy(tmp_path: Path) -> AsyncIterator[Rig]:
    with public_directory("penalties") as directory:
        sections: dict[str, Any] = {
            "listener": {"authenticate": ["users"]},
            "users": users_file(tmp_path, alice="canary-pw-right"),
            "authentication": {"failure_delay": "0s", "tries": 100},
            "penalties": {
                "address": {"free": 6, "per_minute": 1},
                "user_address": {"free": 3, "per_minute": 1},
                "total": {"free": 1000, "per_minute": 1},
            },
            "control": {"socket": str(directory / "control.sock")},
        }
        async with running(tmp_path, **sections) as made:
            yield made


async def command(rig: Rig, *arguments: str) -> Run:
    socket = rig.service._loaded.config.control.socket
    return await asyncio.to_thread(popproxy, "penalties", *arguments, "--socket", str(socket))


async def wrong(rig: Rig, user: str, count: int) -> list[bytes]:
    client = await rig.greeted()
    answers = []
    for number in range(count):
        await client.command(f"USER {user}")
        answers.append(await client.command(f"PASS canary-pw-{number}"))
    client.close()
    return answers


async def test_penalties_are_listed_and_cleared(tmp_path: Path) -> None:
    async with proxy(tmp_path) as rig:
        run = await command(rig, "list")
        assert (run.returncode, run.stdout) == (0, b"nobody is slowed down\n")
        assert (await wrong(rig, "alice", 5)).count(b"-ERR [AUTH] authentication failed") == 3
        assert (await wrong(rig, "\u202ebob", 1))[0].startswith(b"-ERR")
        listed = (await command(rig, "list")).stdout.decode().splitlines()
        assert listed[0].split() == ["WHAT", "USER", "ADDRESS", "WRONG", "FREE", "LATEST", "SLOWED", "FOR"]
        assert [line.split()[:4] for line in listed[1:]] == [["user", "from", "address", "alice"]]
        everything = json.loads((await command(rig, "list", "--all", "--json")).stdout)["penalties"]
        # what is counted in total is forgiven within seconds, which a loaded machine may take
        scopes = {penalty["scope"] for penalty in everything} - {"total"}
        assert scopes == {"address", "user_address", "account"}
        run = await command(rig, "clear", "ALICE", "--from", "127.0.0.1")
        assert (run.returncode, run.stdout) == (0, b"1 counter cleared\n")
        client = await rig.greeted()
        await client.command("USER alice")
        await client.send("PASS canary-pw-right\r\n")
        await rig.backend.logged_in()
        await client.expect("+OK Logged in")
        records = rig.audit("admin")
        assert [record["popproxy.command"] for record in records] == [*["penalties list"] * 3, "penalties clear"]
        assert records[-1]["popproxy.arguments"] == {"user": "ALICE", "network": "127.0.0.1"}


async def test_everybody_can_be_forgiven(tmp_path: Path) -> None:
    async with proxy(tmp_path) as rig:
        for number in range(7):
            await wrong(rig, f"user{number}", 1)
        assert b"slowed" not in (await command(rig, "list")).stdout
        run = await command(rig, "clear", "--all", "--json")
        assert json.loads(run.stdout)["cleared"] == 14
        assert (await command(rig, "list", "--all")).stdout == b"nothing is counted\n"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["clear"], ExitCode.USAGE, "say --all"),
        (["clear", "alice", "--all"], ExitCode.USAGE, "say --all"),
        (["clear", "192.0.2.1/24"], ExitCode.USAGE, "host bits"),
        (["clear", "alice", "--from", "home"], ExitCode.USAGE, "home"),
        (["clear", "al\nice"], ExitCode.USAGE, "control_character"),
    ],
)
async def test_what_cannot_be_cleared_is_said(tmp_path: Path, arguments: list[str], code: ExitCode, text: str) -> None:
    async with proxy(tmp_path) as rig:
        run = await command(rig, *arguments)
        assert run.returncode == code
        assert text in run.stderr.decode()


def test_without_a_running_popproxy_it_says_so(tmp_path: Path) -> None:
    run = popproxy("penalties", "list", "--socket", str(tmp_path / "none"))
    assert run.returncode == ExitCode.UNAVAILABLE
    assert "is it running" in run.stderr.decode()


def test_a_configuration_without_a_socket_is_said(tmp_path: Path) -> None:
    config = tmp_path / "popproxy.yaml"
    config.write_text(
        'listeners: [{name: pop3, listen: [":110"], tls: none, apop: false, cleartext_networks: [10.0.0.0/8]}]\n'
        "pools: {main: {servers: [a]}}\ncontrol: {socket: null}\n"
    )
    run = popproxy("penalties", "list", "-c", str(config))
    assert run.returncode == ExitCode.CONFIG
    assert "control.socket" in run.stderr.decode()


def test_a_name_cannot_steer_the_terminal() -> None:
    stream = io.StringIO()
    print_table(("user", "n"), [("a\x1b[2J\u202e", "1")], stream)
    assert [line.split() for line in stream.getvalue().splitlines()] == [["USER", "N"], ["a\\x1b[2J\\u202e", "1"]]
