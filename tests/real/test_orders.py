"""Orders of operators to a popproxy of two workers: all of them heed them, and so does the next popproxy."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
from collections.abc import Callable
from typing import Any

import pytest

from tests.peers.canaries import canary
from tests.peers.process import public_directory, wait_until
from tests.peers.proxy import Proxy, settings
from tests.peers.scripted import ScriptedBackend
from tests.real.directory_rig import LATER, attempt

pytestmark = pytest.mark.real

LOGINS = 12
"""As many as make it sure that both workers had some."""


async def operator(proxy: Proxy, *arguments: str) -> Any:
    """The result of a command."""
    run = await asyncio.to_thread(proxy.command, *arguments, "--json")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


async def log_in(proxy: Proxy) -> set[bytes]:
    """What came of many logins at once, each by a connection of its own."""
    tried = await asyncio.gather(*(attempt(proxy, "alice", canary()) for _ in range(LOGINS)))
    return {one.reply[:3] if one.reply.startswith(b"+OK") else one.reply for one in tried}


def logins(server: ScriptedBackend) -> int:
    return sum(session.logged_in for session in server.sessions)


async def test_every_worker_and_the_next_popproxy_do_what_was_ordered(start_proxy: Callable[..., Proxy]) -> None:
    with public_directory("orders") as directory:
        async with ScriptedBackend() as old, ScriptedBackend() as new:
            if os.geteuid() == 0:
                nobody = pwd.getpwnam("nobody")
                os.chown(directory, nobody.pw_uid, nobody.pw_gid)
            process = {"state_directory": str(directory), **({"user": "nobody"} if os.geteuid() == 0 else {})}
            complete = settings(old.address, workers=2, process=process, routing={"default": "main"})
            complete["pools"]["new"] = {"servers": [new.address], "tls": "none", "allow_cleartext": True}
            proxy = await asyncio.to_thread(start_proxy, complete)
            assert await log_in(proxy) == {b"+OK"}
            assert (await operator(proxy, "hold", "alice", "--refuse"))["kept"] is True
            assert await log_in(proxy) == {LATER}
            await operator(proxy, "move", "alice", "new")
            await operator(proxy, "release", "alice")
            assert await log_in(proxy) == {b"+OK"}
            assert (logins(old), logins(new)) == (LOGINS, LOGINS)
            await operator(proxy, "backends", "drain", new.address)
            assert await log_in(proxy) == {LATER}
            found = await operator(proxy, "orders")
            assert [(one["user"], one["pool"]) for one in found["moves"]] == [("alice", "new")]
            assert [one["state"] for one in found["servers"]] == ["drain"]
            await asyncio.to_thread(wait_until, lambda: len(proxy.audit("login")) == 2 * LOGINS, "all records")
            await asyncio.to_thread(proxy.stop)
            proxy = await asyncio.to_thread(start_proxy, complete)
            assert await log_in(proxy) == {LATER}
            await operator(proxy, "backends", "resume", new.address)
            assert await log_in(proxy) == {b"+OK"}
            assert (logins(old), logins(new)) == (LOGINS, 2 * LOGINS)
