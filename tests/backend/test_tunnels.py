"""Servers behind an SSH tunnel: each session has a channel of its own, and the end of the tunnel is an honest one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from tests.backend.test_dialing import LATER, log_in, server_context, unused
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.ssh import Keys, ScriptedSsh, scripted_ssh
from tests.session.rig import Backend, Rig, answer_login, running, until

pytestmark = pytest.mark.long


def behind(server: ScriptedSsh, **pool: Any) -> dict[str, Any]:
    """A configuration whose pool is behind `server`."""
    link = {"tunnel": "jump", "allow_cleartext": False, **pool}
    return {"tunnels": {"jump": server.keys.tunnel()}, "pool": link}


async def up(rig: Rig, state: str = "up", name: str = "jump") -> None:
    await until(lambda: rig.metrics.ssh_connections[(name, state)] == 1, f"the tunnel is {state}")


async def test_session_goes_through_the_tunnel_which_looks_the_name_up(tmp_path: Path) -> None:
    async with scripted_ssh(tmp_path) as ssh, running(tmp_path, **behind(ssh)) as rig:
        await up(rig)
        client, backend = await rig.logged_in()
        message = b"+OK\r\n" + b"0123456789abcdef" * 65_536 + b"\r\n.\r\n"
        await client.send("RETR 1\r\n")
        await backend.expect("RETR 1")
        receiving = asyncio.create_task(client.take(len(message)))
        await backend.send(message)
        assert await receiving == message
        await client.send("QUIT\r\n")
        await backend.expect("QUIT")
        await backend.send("+OK bye\r\n")
        backend.close()
        await client.expect("+OK bye")
        await rig.ends("logout")
        assert ssh.opened == [("127.0.0.1", rig.backend.port)]
        assert rig.metrics.ssh_connections == {("jump", "connecting"): 0, ("jump", "up"): 1, ("jump", "down"): 0}


@pytest.mark.long
async def test_client_that_reads_slowly_loses_nothing_of_a_message_whose_server_has_gone(tmp_path: Path) -> None:
    """The server sends it all and closes; the client reads when all buffers on the way are full."""
    async with scripted_ssh(tmp_path) as ssh, running(tmp_path, **behind(ssh)) as rig:
        await up(rig)
        client, backend = await rig.logged_in(receive=65_536)
        message = b"+OK\r\n" + bytes(range(32, 127)) * 250_000 + b"\r\n.\r\n"
        await client.send("RETR 1\r\n")
        await backend.expect("RETR 1")

        async def send_and_go() -> None:
            await backend.send(message)
            backend.close()

        sending = asyncio.create_task(send_and_go())
        await asyncio.sleep(0.2)
        assert not sending.done(), "more was taken from the server than a session may queue"
        assert await client.take(len(message)) == message
        await sending
        assert (await client.command("NOOP")).startswith(b"-ERR [SYS/TEMP]")
        await rig.ends("backend_lost")


async def test_tls_of_the_server_goes_through_the_tunnel(
    tmp_path: Path, server_certificate: CertificateFiles, authority: Authority
) -> None:
    for tls in ("stls", "implicit"):
        async with scripted_ssh(tmp_path) as ssh:
            config = behind(ssh, tls=tls, ca=str(authority.ca), server_name="localhost")
            async with running(tmp_path, **config) as rig:
                await up(rig)
                _, answer = await log_in(rig)
                peer = await rig.backend.accept()
                if tls == "stls":
                    await peer.send("+OK ready\r\n")
                    await peer.expect("STLS")
                    await peer.send("+OK\r\n")
                await peer.handshake(server_context(server_certificate), server=True)
                if tls == "implicit":
                    await peer.send("+OK ready\r\n")
                await answer_login(peer)
                assert await answer == b"+OK Logged in"


async def test_wrong_host_key_is_refused_before_any_credential(tmp_path: Path) -> None:
    async with scripted_ssh(tmp_path) as ssh:
        ssh.keys.know(asyncssh.generate_private_key("ssh-ed25519"))
        async with running(tmp_path, **behind(ssh)) as rig:
            rig.expected_errors = ["tunnel is down.*host_key|host_key.*tunnel is down"]
            await until(lambda: rig.metrics.ssh_failures[("jump", "host_key")] >= 2, "two attempts")
            _, answer = await log_in(rig)
            assert await answer == LATER
            assert ssh.logins == [], "not even the user's name has been sent"
            assert rig.metrics.backend_errors[(rig.backend.address, "connect", "tunnel")] == 1
            assert rig.log().count('"reason": "host_key"') == 1, "told once, not with each attempt"
            ssh.keys.know(ssh.keys.host)  # the next attempt sees the corrected file
            await up(rig)
            await rig.logged_in()


async def test_key_that_is_not_taken(tmp_path: Path) -> None:
    async with scripted_ssh(tmp_path) as ssh:
        ssh.keys.client_file.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
        async with running(tmp_path, **behind(ssh)) as rig:
            rig.expected_errors = ["tunnel is down"]
            await until(lambda: rig.metrics.ssh_failures[("jump", "login")] >= 1, "the refusal")
            assert set(ssh.logins) == {"nobody"}


async def test_tunnel_killed_under_load(tmp_path: Path) -> None:
    """Between commands, inside a message, behind QUIT: as if the server had died. A plain session notices nothing."""
    async with scripted_ssh(tmp_path) as ssh:
        config = behind(ssh)
        async with running(tmp_path, **config) as rig:
            rig.expected_errors = ["tunnel is down"]
            await up(rig)
            waiting, _ = await rig.logged_in()
            reading, second = await rig.logged_in(None)
            leaving, third = await rig.logged_in(None)
            await reading.send("RETR 1\r\n")
            await second.expect("RETR 1")
            await second.send(b"+OK\r\nhalf a mess")
            assert await reading.take(16) == b"+OK\r\nhalf a mess"
            await leaving.send("DELE 1\r\n")
            await third.expect("DELE 1")
            await third.send("+OK\r\n")
            await leaving.expect("+OK")
            await leaving.send("QUIT\r\n")
            await third.expect("QUIT")
            ssh.kill()
            await until(lambda: rig.metrics.ssh_failures[("jump", "lost")] == 1, "the loss of the tunnel")
            assert (await waiting.command("NOOP")).startswith(b"-ERR [SYS/TEMP]")
            assert await reading.rest() == b"", "no dot, no -ERR: it would be read as mail"
            assert (await leaving.rest()).startswith(b"-ERR [SYS/TEMP]"), "nobody knows what became of it"
            await until(lambda: len(rig.audit("session_end")) == 3, "the end of the three")
            reasons = sorted(record["event.reason"] for record in rig.audit("session_end"))
            assert reasons == ["backend_lost", "backend_lost", "update_unknown"]
            for peer in rig.backend.connections:
                assert b"QUIT" not in await peer.rest(), "we send none of our own"
            client, answer = await log_in(rig)  # waits for the next attempt
            await rig.backend.logged_in(None)
            assert await answer == b"+OK Logged in"
            client.close()


async def test_server_behind_the_tunnel_that_refuses_and_one_that_is_forbidden(tmp_path: Path) -> None:
    nowhere = unused()
    async with scripted_ssh(tmp_path) as ssh, running(tmp_path, **behind(ssh, servers=[nowhere])) as rig:
        await up(rig)
        client, answer = await log_in(rig)
        assert await answer == LATER
        assert rig.metrics.backend_errors[(nowhere, "connect", "refused")] == 1
        ssh.allow = False
        await client.command("USER alice")
        assert await client.command("PASS canary-pw-alice") == LATER
        assert rig.metrics.backend_errors[(nowhere, "connect", "rejected")] == 1
        assert rig.metrics.ssh_connections[("jump", "up")] == 1


async def test_channel_that_is_never_opened_is_given_up_in_time(tmp_path: Path) -> None:
    async with scripted_ssh(tmp_path) as ssh:
        ssh.deaf = True
        async with running(tmp_path, timeouts={"connect": "200ms"}, **behind(ssh)) as rig:
            await up(rig)
            _, answer = await log_in(rig)
            assert await answer == LATER
            assert rig.metrics.backend_errors[(rig.backend.address, "connect", "timeout")] == 1


async def test_tunnel_through_a_tunnel(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    async with scripted_ssh(tmp_path) as outer_ssh, scripted_ssh(inner) as inner_ssh:
        tunnels = {"far": inner_ssh.keys.tunnel(via="near"), "near": outer_ssh.keys.tunnel()}
        pool = {"tunnel": "far", "allow_cleartext": False}
        async with running(tmp_path, tunnels=tunnels, pool=pool) as rig:
            rig.expected_errors = ["tunnel is down"]
            await up(rig, name="far")
            await rig.logged_in()
            assert outer_ssh.opened == [("127.0.0.1", inner_ssh.keys.port)]
            outer_ssh.kill()
            await until(lambda: rig.metrics.ssh_failures[("far", "lost")] == 1, "the end of the inner one")
            await up(rig, name="far")
            await rig.logged_in(None)


async def test_one_server_of_a_pool_behind_a_tunnel_and_one_in_front_of_it(tmp_path: Path) -> None:
    """Either way round: the tunnel of the pool does not hold for the server that is reached without."""
    for tunnel, others in ((None, "jump"), ("jump", None)):
        near, far = Backend(), Backend()
        behind_it = far if tunnel is None else near
        async with scripted_ssh(tmp_path) as ssh:
            pool = {
                "servers": [near.address, far.address], "shared": True, "tunnel": tunnel,
                "server_tunnels": {far.address: others},
            }  # fmt: skip
            tunnels = {"jump": ssh.keys.tunnel()}
            async with running(tmp_path, backend=near, pool=pool, tunnels=tunnels) as rig:
                await up(rig)
                _, answer = await log_in(rig)
                await near.logged_in()
                assert await answer == b"+OK Logged in"
                _, answer = await log_in(rig)
                (await near.accept()).close()
                await far.logged_in()
                assert await answer == b"+OK Logged in"
                assert {port for _, port in ssh.opened} == {behind_it.port}
                far.close()


async def test_nobody_listens_at_the_ssh_server(tmp_path: Path) -> None:
    keys = Keys(tmp_path, int(unused().rpartition(":")[2]))
    tunnels = {"jump": keys.tunnel(retry="1h", retry_longest="1h")}
    pool = {"tunnel": "jump", "allow_cleartext": False}
    async with running(tmp_path, tunnels=tunnels, pool=pool, timeouts={"connect_total": "100s"}) as rig:
        rig.expected_errors = ["tunnel is down.*|refused"]
        await up(rig, "down")
        loop = asyncio.get_running_loop()
        started = loop.time()
        _, answer = await log_in(rig)
        assert await answer == LATER
        assert loop.time() - started < 60, "nobody waits for an attempt that comes much later"
        assert rig.metrics.ssh_failures[("jump", "refused")] == 1


@pytest.mark.parametrize("count", [pytest.param(200, marks=pytest.mark.long)])
async def test_two_hundred_sessions_over_one_connection(tmp_path: Path, count: int) -> None:
    async with scripted_ssh(tmp_path) as ssh, running(tmp_path, **behind(ssh)) as rig:
        await up(rig)
        pairs = [await rig.logged_in("TOP UIDL" if not number else None) for number in range(count)]

        async def converse(number: int) -> None:
            client, backend = pairs[number]
            await client.send(f"TOP {number + 1} 0\r\n")
            await backend.expect(f"TOP {number + 1} 0")
            await backend.send(f"+OK\r\nSubject: {number}\r\n\r\n.\r\n")
            for line in ("+OK", f"Subject: {number}", "", "."):
                await client.expect(line)

        await asyncio.gather(*(converse(number) for number in range(count)))
        assert len(ssh.connections) == 1
