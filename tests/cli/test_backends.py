"""``popproxy backends`` against a running popproxy."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from popproxy.cli.exits import ExitCode
from tests.cli.helpers import Run, popproxy
from tests.peers.process import public_directory
from tests.peers.scripted import ScriptedBackend
from tests.session.rig import Backend, Rig, running


async def command(rig: Rig, *arguments: str) -> Run:
    socket = rig.service._loaded.config.control.socket
    return await asyncio.to_thread(popproxy, "backends", *arguments, "--socket", str(socket))


async def log_in(rig: Rig) -> bytes:
    client = await rig.greeted()
    await client.command("USER alice")
    answer = await client.command("PASS canary-pw-right")
    client.close()
    return answer


async def test_servers_are_listed_drained_and_resumed(tmp_path: Path) -> None:
    with public_directory("backends") as directory:
        async with ScriptedBackend() as first, ScriptedBackend() as second:
            pool = {"servers": [first.address, second.address], "shared": True, "balance": {"sessions": 7}}
            control = {"socket": str(directory / "control.sock")}
            async with running(tmp_path, backend=Backend(), pool=pool, control=control) as rig:
                run = await command(rig, "list")
                assert run.stdout.decode().splitlines()[0].split() == [
                    *("POOL", "SERVER", "STATE", "FOR", "SESSIONS", "LIMIT", "WEIGHT", "WHY"),
                ]
                assert run.stdout.count(b" up ") == 2
                assert b"0 waiting for a place in main" in run.stdout
                assert (await command(rig, "drain", first.address)).stdout.count(b" drain ") == 1
                assert await log_in(rig) == b"+OK Logged in"
                assert (len(first.sessions), len(second.sessions)) == (0, 1)
                found = json.loads(
                    (await command(rig, "maintenance", second.address, "--pool", "main", "--json")).stdout
                )
                assert [(one["server"], one["state"], one["limit"]) for one in found["backends"]] == [
                    (second.address, "maintenance", 7)
                ]
                assert await log_in(rig) == b"-ERR [SYS/TEMP] temporary problem, try again later"
                await command(rig, "resume", second.address)
                assert await log_in(rig) == b"+OK Logged in"
                states = {
                    one["server"]: one["state"]
                    for one in json.loads((await command(rig, "list", "--json")).stdout)["backends"]
                }
                assert states == {first.address: "drain", second.address: "up"}
                admin = [record["popproxy.command"] for record in rig.audit("admin")]
                assert admin == [
                    *("backends list", "backends drain", "backends maintenance", "backends resume", "backends list")
                ]


async def test_a_server_that_is_not_there_or_could_be_two(tmp_path: Path) -> None:
    with public_directory("backends") as directory:
        pool = {"servers": ["127.0.0.1:1", "127.0.0.1:2"], "shared": True}
        async with running(tmp_path, pool=pool, control={"socket": str(directory / "control.sock")}) as rig:
            for arguments, cure in (
                (("nobody",), b"there are 127.0.0.1:1, 127.0.0.1:2"),
                (("127.0.0.1",), b"say which one: 127.0.0.1:1, 127.0.0.1:2"),
                (("127.0.0.1:1", "--pool", "other"), b"there is no pool other; there are main"),
            ):
                run = await command(rig, "drain", *arguments)
                assert run.returncode == ExitCode.USAGE
                assert cure in run.stderr
