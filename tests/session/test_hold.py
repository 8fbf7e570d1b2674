"""Users who are held and moved by operators: what their clients see, and where their logins go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from popproxy.admin.backends import add_backends
from popproxy.admin.commands import Commands
from popproxy.admin.frames import CommandFailed
from popproxy.admin.orders import add_orders
from popproxy.backend.balancer import State
from tests.peers.scripted import ScriptedBackend
from tests.session.rig import Backend, Peer, Rig, log_in, running, until

WELCOME = b"+OK Logged in"
LATER = b"-ERR [SYS/TEMP] temporary problem, try again later"


@contextlib.asynccontextmanager
async def site(tmp_path: Path, old: ScriptedBackend, new: ScriptedBackend, **sections: Any) -> AsyncIterator[Rig]:
    """Everybody is at `old`; orders are kept in a file."""
    state = tmp_path / "state"
    state.mkdir(exist_ok=True)
    routing = {"default": "main", "hold_wait": "10s", **sections.pop("routing", {})}
    pools = {
        "new": {"servers": [new.address], "tls": "none", "allow_cleartext": True},
        **sections.pop("more_pools", {}),
    }
    process = {"state_directory": str(state)}
    async with running(
        tmp_path, backend=Backend(), pool={"servers": [old.address]}, more_pools=pools, routing=routing,
        process=process, **sections,
    ) as rig:  # fmt: skip
        yield rig


async def order(rig: Rig, command: str, **arguments: Any) -> Any:
    """As an operator."""
    commands, parts = Commands(), rig.parts
    add_orders(commands, parts.holding, parts.pools, rig.service.sessions, parts.vet_name)
    add_backends(commands, parts.pools, parts.backends.latest, parts.metrics, parts.holding.book)
    return await commands.execute(command, arguments)


async def offered(rig: Rig, user: str = "alice") -> tuple[Peer, asyncio.Task[bytes]]:
    """A client that has sent its password, and the answer to it."""
    client = await rig.greeted()
    await client.command(f"USER {user}")
    return client, asyncio.create_task(client.command("PASS canary-pw-right"))


def users(server: ScriptedBackend) -> list[str]:
    return [session.user for session in server.sessions if session.logged_in]


async def test_a_mailbox_is_moved_while_people_work(tmp_path: Path) -> None:
    """Hold, end the session, move, release: nobody sees an empty maildrop, and who waited finds his mail."""
    async with ScriptedBackend([b"old"]) as old, ScriptedBackend([b"new", b"newer"]) as new:
        async with site(tmp_path, old, new) as rig:
            running_client, first = await offered(rig)
            assert await first == WELCOME
            assert await running_client.command("DELE 1") == b"+OK"
            held = await order(rig, "hold", user="Alice", end_sessions=True)
            assert (held["user"], held["kept"], len(held["ended"]), held["open"]) == ("alice", True, 1, [])
            assert b"QUIT" not in (await old.ended()).lines, "nothing is deleted that the client has not said QUIT for"
            waiting, answer = await offered(rig)
            await until(lambda: rig.parts.holding.waiting == 1, "the login to wait")
            assert await log_in(rig, "bob") == WELCOME, "others notice nothing"
            await order(rig, "move", user="alice", pool="new")
            await order(rig, "release", user="alice")
            assert await answer == WELCOME
            assert (await waiting.command("STAT")).startswith(b"+OK 2 ")
            assert (users(old), users(new)) == (["alice", "bob"], ["alice"])
            assert rig.audit("session_end")[0]["event.reason"] == "kicked"
        async with site(tmp_path, old, new) as rig:  # popproxy is started again
            assert [await log_in(rig, user) for user in ("alice", "bob")] == [WELCOME] * 2
            assert (users(old), users(new)) == (["alice", "bob", "bob"], ["alice", "alice"])
            await order(rig, "move undo", user="alice")
            assert await log_in(rig) == WELCOME
            assert users(old)[-1] == "alice"


@pytest.mark.long
async def test_who_is_held_gets_temporary_answers_only(tmp_path: Path) -> None:
    async with (
        ScriptedBackend() as old,
        ScriptedBackend() as new,
        site(tmp_path, old, new, routing={"hold_wait": "1s"}) as rig,
    ):
        await order(rig, "hold", user="alice")
        assert await log_in(rig) == LATER
        await order(rig, "hold", user="alice", refuse=True, seconds=3600.0)
        assert await log_in(rig) == LATER
        assert not old.sessions
        reasons = [(record["event.outcome"], record["event.reason"]) for record in rig.audit("auth")]
        assert reasons == [("unknown", "held")] * 2
        await order(rig, "hold", user="alice", seconds=0.05)  # a hold that ends by itself
        client, answer = await offered(rig)
        assert await answer == WELCOME
        client.close()


@pytest.mark.parametrize("orders", ["hold", "hold release", "hold move release"])
async def test_a_login_that_is_on_its_way_when_its_user_is_held_does_not_get_in(tmp_path: Path, orders: str) -> None:
    """Not even if the mail has been moved, and the user released, before a slow server answers."""
    at_pass = asyncio.Event()
    go_on = asyncio.Event()

    async def slow(_session: object, _line: bytes) -> bytes:
        at_pass.set()
        await go_on.wait()
        return b"+OK\r\n"

    async with (
        ScriptedBackend(on_command={"PASS": slow}) as old,
        ScriptedBackend() as new,
        site(tmp_path, old, new) as rig,
    ):
        _, answer = await offered(rig)
        await at_pass.wait()
        for command in orders.split():
            await order(rig, command, user="alice", **({"pool": "new"} if command == "move" else {}))
        go_on.set()
        assert await answer == LATER
        assert (await old.ended()).lines[-1] == b"PASS canary-pw-right", "no QUIT"
        if "release" in orders:
            assert await log_in(rig) == WELCOME
            assert users(new) == ["alice"] * ("move" in orders)


async def test_a_client_that_leaves_while_its_user_is_held(tmp_path: Path) -> None:
    async with ScriptedBackend() as old, ScriptedBackend() as new, site(tmp_path, old, new) as rig:
        await order(rig, "hold", user="alice")
        client, answer = await offered(rig)
        await until(lambda: rig.parts.holding.waiting == 1, "the login to wait")
        client.reset()
        await until(lambda: rig.parts.holding.waiting == 0, "it to be given up")
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)


@pytest.mark.long
async def test_a_user_whose_new_pool_is_gone_is_shown_no_other_maildrop(tmp_path: Path) -> None:
    async with ScriptedBackend() as old, ScriptedBackend() as new:
        other = {"other": {"servers": [new.address], "tls": "none", "allow_cleartext": True}}
        async with site(tmp_path, old, new, more_pools=other) as rig:
            await order(rig, "move", user="alice", pool="other", server=new.address, backend_user="al")
            assert await log_in(rig) == WELCOME
            assert users(new) == ["al"]
        async with site(tmp_path, old, new) as rig:
            rig.expected_errors.append("an operator has moved the user to a place that no pool has")
            assert (await log_in(rig)).startswith(b"-ERR [SYS/PERM]")
            assert (users(old), users(new)) == ([], ["al"])


@pytest.mark.long
async def test_servers_stay_out_of_service_after_a_restart(tmp_path: Path) -> None:
    async with ScriptedBackend() as old, ScriptedBackend() as new:
        async with site(tmp_path, old, new) as rig:
            await order(rig, "backends drain", server=old.address)
            assert await log_in(rig) == LATER
        async with site(tmp_path, old, new) as rig:
            assert rig.parts.pools["main"].backends[0].member.state is State.DRAIN
            assert await log_in(rig) == LATER
            await order(rig, "backends resume", server=old.address)
            assert await log_in(rig) == WELCOME
            assert (await order(rig, "orders list"))["servers"] == []


@pytest.mark.long
async def test_what_another_process_has_ordered_holds_here_too(tmp_path: Path) -> None:
    async with ScriptedBackend() as old, ScriptedBackend() as new, site(tmp_path, old, new) as rig:
        from popproxy.app.orders import open_orders

        other = open_orders(rig.parts.config, rig.parts.state)
        await other.change(lambda orders: orders.closing("main", old.address, _closed()))
        await until(lambda: rig.parts.pools["main"].backends[0].member.state is State.MAINTENANCE, "it to be noticed")


def _closed() -> Any:
    from popproxy.state.orders import Closed

    return Closed(1.0, "maintenance")


async def test_orders_that_make_no_sense(tmp_path: Path) -> None:
    async with ScriptedBackend() as old, ScriptedBackend() as new, site(tmp_path, old, new) as rig:
        for command, arguments, what in (
            ("release", {"user": "alice"}, "alice is not held"),
            ("move undo", {"user": "alice"}, "alice has not been moved"),
            ("move", {"user": "alice", "pool": "nowhere"}, "there is no pool nowhere; there are main, new"),
            ("move", {"user": "alice", "pool": "new", "server": old.address}, "there is no server"),
            ("move", {"user": "alice", "pool": "new", "backend_user": "a\nb"}, "cannot be a user's name"),
            ("hold", {"user": "alice", "seconds": -1.0}, "must be more than 0"),
            ("hold", {"user": "a\nb"}, "that is no user name"),
        ):
            with pytest.raises(CommandFailed, match=what):
                await order(rig, command, **arguments)


async def test_without_a_state_directory_nobody_is_moved(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        with pytest.raises(CommandFailed, match=r"process\.state_directory"):
            await order(rig, "move", user="alice", pool="main")
        assert (await order(rig, "hold", user="alice"))["kept"] is False
