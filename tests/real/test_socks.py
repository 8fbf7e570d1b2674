"""A real SOCKS5 proxy between popproxy and the servers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.peers.canaries import canary
from tests.peers.dovecot import Dovecot
from tests.peers.messages import SAMPLES, multiline, wire
from tests.peers.process import free_port
from tests.peers.proxy import StartProxy, settings
from tests.peers.raw import RawClient
from tests.peers.scripted import ScriptedBackend
from tests.peers.socks import microsocks

PATIENT = {"connect": "30s", "connect_total": "30s"}
"""On a busy machine."""
LATER = b"-ERR [SYS/TEMP] temporary problem, try again later"


def password_file(path: Path, password: str) -> dict[str, str]:
    path.write_text(f"{password}\n")
    path.chmod(0o600)
    return {"file": str(path)}


async def test_stls_through_a_proxy_that_wants_a_login_and_looks_the_name_up(
    start_proxy: StartProxy, dovecot_server: Dovecot, authority: Any, tmp_path: Path
) -> None:
    secret = canary("socks")
    dovecot_server.deliver("alice", SAMPLES)
    with microsocks(("popproxy", secret)) as socks:
        pool: dict[str, Any] = {
            "servers": [f"localhost:{dovecot_server.port}"], "tls": "stls", "ca": str(authority.ca),
            "allow_cleartext": False, "source_address": "127.0.0.9",
            "socks": {
                "server": socks.address, "user": "popproxy", "password": password_file(tmp_path / "socks", secret),
            },
        }  # fmt: skip
        proxy = await asyncio.to_thread(start_proxy, settings("", pool=pool, timeouts=PATIENT))
        async with RawClient(proxy.port()) as client:
            assert (await client.login("alice", dovecot_server.users["alice"])).startswith(b"+OK")
            fetched = [await client.multiline(f"RETR {number}") for number in range(1, len(SAMPLES) + 1)]
            assert fetched == [multiline(wire(message)) for message in SAMPLES]
            assert (await client.command("QUIT")).startswith(b"+OK")
        assert f"127.0.0.9: connected to localhost:{dovecot_server.port}" in socks.log()
        checked = await asyncio.to_thread(proxy.command, "check")
        assert f"localhost:{dovecot_server.port} answers with TLSv1.3, its certificate is good" in checked.stdout

        wrong = {**pool, "socks": {**pool["socks"], "password": password_file(tmp_path / "wrong", canary("wrong"))}}
        refused = await asyncio.to_thread(start_proxy, settings("", pool=wrong, timeouts=PATIENT))
        async with RawClient(refused.port()) as client:
            assert await client.login("alice", dovecot_server.users["alice"]) == LATER
        samples = await asyncio.to_thread(refused.metrics)
        label = f'backend="localhost:{dovecot_server.port}",reason="socks",stage="connect"'
        assert samples[f"popproxy_backend_errors_total{{{label}}}"] == 1
        checked = await asyncio.to_thread(refused.command, "check")
        assert "cannot be asked: the SOCKS proxy says: Username and password authentication failure" in checked.stdout


async def test_server_and_proxy_that_are_down(start_proxy: StartProxy) -> None:
    """What the proxy says of the server counts as the server's; that the proxy is gone, as the proxy's."""
    nowhere = f"127.0.0.1:{free_port()}"
    async with ScriptedBackend([b"Subject: x\r\n\r\n"]) as backend:
        with microsocks() as socks:
            configuration = settings(
                nowhere, pool={"socks": {"server": socks.address, "resolve": "local"}}, timeouts=PATIENT
            )
            configuration["pools"]["there"] = {
                **configuration["pools"]["main"], "servers": [f"localhost:{backend.port}"],
            }  # fmt: skip
            configuration["routing"] = {"rules": [{"user": "bob", "pool": "there"}], "default": "main"}
            proxy = await asyncio.to_thread(start_proxy, configuration)
            async with RawClient(proxy.port()) as alice, RawClient(proxy.port()) as bob:
                assert await alice.login("alice", canary("alice")) == LATER
                assert (await bob.login("bob", canary("bob"))).startswith(b"+OK")
                assert f"connected to 127.0.0.1:{backend.port}" in socks.log(), "the name was looked up here"
                socks.stop()
                assert (await bob.command("NOOP")).startswith(b"-ERR [SYS/TEMP]")
            async with RawClient(proxy.port()) as bob:
                assert await bob.login("bob", canary("bob")) == LATER
        samples = await asyncio.to_thread(proxy.metrics)

        def failures(server: str, reason: str) -> float:
            return samples[f'popproxy_backend_errors_total{{backend="{server}",reason="{reason}",stage="connect"}}']

        assert failures(nowhere, "refused") == 1
        assert failures(f"localhost:{backend.port}", "socks") == 1
