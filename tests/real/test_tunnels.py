"""A real OpenSSH between popproxy and the servers."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import asyncssh
import pytest

from tests.peers.dovecot import Dovecot
from tests.peers.kdc import realm
from tests.peers.messages import SAMPLES, multiline, wire
from tests.peers.proxy import Proxy, StartProxy, settings
from tests.peers.raw import RawClient
from tests.peers.scripted import ScriptedBackend
from tests.peers.ssh import OpenSsh, openssh

SESSIONS = 200
LATER = b"-ERR [SYS/TEMP] temporary problem, try again later"


@pytest.fixture
def sshd() -> Iterator[OpenSsh]:
    with openssh() as server:
        yield server


def behind(sshd: OpenSsh, backend: str, *, pool: dict[str, Any] | None = None, **tunnel: Any) -> dict[str, Any]:
    """A pool behind `sshd`, and a second one, for bob, that is reached directly."""
    link = {"tunnel": "jump", "allow_cleartext": False, **(pool or {})}
    configuration = settings(backend, pool=link, tunnels={"jump": sshd.keys.tunnel(sshd.user, **tunnel)})
    configuration["pools"]["near"] = {"servers": [backend], "tls": "none", "allow_cleartext": True}
    configuration["routing"] = {"rules": [{"user": "bob", "pool": "near"}], "default": "main"}
    return configuration


async def up(proxy: Proxy, state: str = "up") -> None:
    await _shown(proxy, f'popproxy_ssh_connections{{state="{state}",tunnel="jump"}}')


async def lost(proxy: Proxy) -> None:
    await _shown(proxy, 'popproxy_ssh_failures_total{reason="lost",tunnel="jump"}')


async def _shown(proxy: Proxy, sample: str) -> None:
    async with asyncio.timeout(60):
        while not (await asyncio.to_thread(proxy.metrics))[sample]:
            await asyncio.sleep(0.02)


async def test_stls_inside_the_tunnel_to_a_real_dovecot(
    start_proxy: StartProxy, sshd: OpenSsh, dovecot_server: Dovecot, authority: Any
) -> None:
    dovecot_server.deliver("alice", SAMPLES)
    pool = {"tls": "stls", "ca": str(authority.ca), "servers": [f"localhost:{dovecot_server.port}"]}
    proxy = await asyncio.to_thread(start_proxy, behind(sshd, f"127.0.0.1:{dovecot_server.port}", pool=pool))
    await up(proxy)
    async with RawClient(proxy.port()) as client:
        assert (await client.login("alice", dovecot_server.users["alice"])).startswith(b"+OK")
        fetched = [await client.multiline(f"RETR {number}") for number in range(1, len(SAMPLES) + 1)]
        assert fetched == [multiline(wire(message)) for message in SAMPLES]
        await client.command("DELE 1")
        assert (await client.command("QUIT")).startswith(b"+OK")
    assert len(dovecot_server.maildrop("alice")) == len(SAMPLES) - 1
    checked = await asyncio.to_thread(proxy.command, "check")
    assert "tunnel jump" in checked.stdout
    assert f"localhost:{dovecot_server.port} answers with TLSv1.3, its certificate is good" in checked.stdout


async def test_two_hundred_sessions_over_one_connection_then_the_tunnel_is_killed(
    start_proxy: StartProxy, sshd: OpenSsh
) -> None:
    body = b"0123456789abcdef" * 4096
    async with ScriptedBackend([body]) as backend:
        configuration = {**behind(sshd, backend.address), "timeouts": {"connect": "30s", "connect_total": "30s"}}
        proxy = await asyncio.to_thread(start_proxy, configuration)
        await up(proxy)
        clients = [RawClient(proxy.port()) for _ in range(SESSIONS)]
        for client in clients:
            await client.__aenter__()
        async with RawClient(proxy.port()) as near:
            assert (await near.login("bob", "canary-pw-bob")).startswith(b"+OK")
            for client in clients:  # all at once they would look like guesses
                assert (await client.login("alice", "canary-pw-alice")).startswith(b"+OK")
            bodies = await asyncio.gather(*(client.multiline("RETR 1") for client in clients))
            assert set(bodies) == {multiline(body)}
            [connection] = sshd.connections()

            for client in clients[-10:]:
                assert (await client.command("DELE 1")).startswith(b"+OK")
            readers = clients[: SESSIONS // 2]
            running = [asyncio.create_task(_read_on(client)) for client in readers]
            await asyncio.sleep(0.3)
            os.kill(connection, signal.SIGKILL)
            await lost(proxy)
            for last in await asyncio.gather(*running):
                assert not last.endswith(b"\r\n.\r\n-ERR")
            ends = await asyncio.gather(*(client.command("NOOP") for client in clients[SESSIONS // 2 :]))
            assert {end.split(b"]")[0] for end in ends} == {b"-ERR [SYS/TEMP"}
            assert (await near.multiline("RETR 1")) == multiline(body), "a session without the tunnel has noticed it"

            async with RawClient(proxy.port()) as client:  # waits for the next attempt
                assert (await client.login("alice", "canary-pw-alice")).startswith(b"+OK")
            assert len(sshd.connections()) == 1
            ended = await asyncio.to_thread(proxy.sessions, SESSIONS)
            lost_with_it = [ends for *_, ends in ended if ends["event.reason"] == "backend_lost"]
            assert len(lost_with_it) == SESSIONS, "one record for each"
            assert not any(end["pop3.committed"] for end in lost_with_it)
            assert sum(end.get("pop3.abandoned_total", 0) for end in lost_with_it) == 10
            assert (await near.command("NOOP")).startswith(b"+OK")
        for client in clients:
            await client.__aexit__()
        assert not any(session.updated for session in backend.sessions)
        assert [session.verbs for session in backend.sessions if "QUIT" in session.verbs] == []


async def _read_on(client: RawClient) -> bytes:
    """Fetch again and again until the end; what came last."""
    try:
        while True:
            status = await client.command("RETR 1")
            if not status.startswith(b"+OK"):
                assert status.startswith(b"-ERR [SYS/TEMP]"), status
                return await client.rest()
            await client.body()
    except (EOFError, ConnectionError) as error:
        return error.args[0] if error.args and isinstance(error.args[0], bytes) else b""


async def test_ssh_server_that_falls_silent_is_given_up(start_proxy: StartProxy, sshd: OpenSsh) -> None:
    async with ScriptedBackend() as backend:
        proxy = await asyncio.to_thread(start_proxy, behind(sshd, backend.address, keepalive="200ms", timeout="2s"))
        await up(proxy)
        async with RawClient(proxy.port()) as client:
            assert (await client.login("alice", "canary-pw-alice")).startswith(b"+OK")
            [connection] = sshd.connections()
            os.kill(connection, signal.SIGSTOP)
            await lost(proxy)
            assert (await client.command("NOOP")).startswith(b"-ERR [SYS/TEMP]")
            await up(proxy)
        async with RawClient(proxy.port()) as client:
            assert (await client.login("alice", "canary-pw-alice")).startswith(b"+OK")


async def test_through_one_openssh_to_another(start_proxy: StartProxy, sshd: OpenSsh) -> None:
    """The inner one only the outer one can reach; each has its own key. If the outer one is lost, both come back."""
    with openssh() as inner:
        async with ScriptedBackend() as backend:
            configuration = behind(inner, backend.address, via="outer")
            configuration["tunnels"]["outer"] = sshd.keys.tunnel(sshd.user)
            configuration["timeouts"] = {"connect": "30s", "connect_total": "30s"}
            proxy = await asyncio.to_thread(start_proxy, configuration)
            async with RawClient(proxy.port()) as client:
                assert (await client.login("alice", "canary-pw-alice")).startswith(b"+OK")
                [connection] = sshd.connections()
                os.kill(connection, signal.SIGKILL)
                await lost(proxy)
                assert (await client.command("NOOP")).startswith(b"-ERR [SYS/TEMP]")
            async with RawClient(proxy.port()) as client:
                assert (await client.login("alice", "canary-pw-alice")).startswith(b"+OK")
            checked = await asyncio.to_thread(proxy.command, "check")
            assert checked.stdout.count("has the right host key and lets") == 2


async def test_lost_server_is_asked_less_and_less_often_until_it_is_back(
    start_proxy: StartProxy, sshd: OpenSsh
) -> None:
    async with ScriptedBackend() as backend:
        proxy = await asyncio.to_thread(start_proxy, behind(sshd, backend.address, retry="100ms", retry_longest="2s"))
        await up(proxy)
        loop, asked = asyncio.get_running_loop(), list[float]()

        def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(loop.time())
            writer.transport.abort()

        [connection] = sshd.connections()
        await asyncio.to_thread(sshd.stop)
        stand_in = await asyncio.start_server(hang_up, "127.0.0.1", sshd.port, reuse_address=True)
        os.kill(connection, signal.SIGKILL)
        async with asyncio.timeout(60):
            while len(asked) < 5:
                await asyncio.sleep(0.02)
        stand_in.close()
        gaps = [later - earlier for earlier, later in pairwise(asked)]
        for gap, least in zip(gaps, (0.1, 0.2, 0.4, 0.8), strict=True):  # the other half is by chance
            assert gap > 0.9 * least, gaps
        await asyncio.to_thread(sshd.start)
        await up(proxy)
        async with RawClient(proxy.port()) as client:
            assert (await client.login("alice", "canary-pw-alice")).startswith(b"+OK")


async def test_wrong_host_key(start_proxy: StartProxy, sshd: OpenSsh) -> None:
    sshd.keys.know(asyncssh.generate_private_key("ssh-ed25519"))
    async with ScriptedBackend() as backend:
        proxy = await asyncio.to_thread(start_proxy, behind(sshd, backend.address))
        await up(proxy, "down")
        async with RawClient(proxy.port()) as client:
            assert await client.login("alice", "canary-pw-alice") == LATER
        checked = await asyncio.to_thread(proxy.command, "check")
        assert checked.returncode != 0
        assert "host key" in checked.stdout.lower()
        assert "Accepted" not in sshd.log()
        assert "userauth" not in sshd.log()
        assert [session.verbs for session in backend.sessions if "USER" in session.verbs] == []


async def test_login_at_the_ssh_server_by_kerberos(start_proxy: StartProxy) -> None:
    """No key at all: a ticket got with a keytab."""
    with realm() as kdc:
        owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        kdc.service("host/localhost", owner.pw_name)
        keytabs = kdc.keytab("host/localhost"), kdc.keytab(owner.pw_name)
        for path in keytabs:
            os.chown(path, owner.pw_uid, owner.pw_gid)
        env = {**kdc.environment, "KRB5_KTNAME": f"FILE:{keytabs[0]}"}
        with openssh(gssapi=True, extra="GSSAPIStrictAcceptorCheck no\nPubkeyAuthentication no", env=env) as sshd:
            sshd.keys.know(sshd.keys.host, "localhost")
            async with ScriptedBackend() as backend:
                configuration = behind(sshd, backend.address, host="localhost", gssapi=True, keytab=str(keytabs[1]))
                del configuration["tunnels"]["jump"]["key"]
                proxy = await asyncio.to_thread(start_proxy, configuration, env=kdc.environment)
                await up(proxy)
                async with RawClient(proxy.port()) as client:
                    assert (await client.login("alice", "canary-pw-alice")).startswith(b"+OK")
            assert "Accepted gssapi-with-mic" in sshd.log()
