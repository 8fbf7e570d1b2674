"""Servers that are told who the client is, before anything else, and once the link is safe."""

from __future__ import annotations

from pathlib import Path

from tests.backend.test_dialing import LATER, log_in, server_context
from tests.peers.certs import Authority, CertificateFiles
from tests.session.rig import answer_login, running


async def test_server_is_told_inside_tls_and_before_all_else(
    tmp_path: Path, authority: Authority, server_certificate: CertificateFiles
) -> None:
    pool = {"xclient": True, "tls": "stls", "ca": str(authority.ca), "allow_cleartext": False}
    async with running(tmp_path, pool=pool) as rig:
        client, answer = await log_in(rig)
        peer = await rig.backend.greeted()
        await peer.expect("STLS")
        await peer.send("+OK\r\n")
        await peer.handshake(server_context(server_certificate), server=True)
        port = client.sock.getsockname()[1]
        told = (await peer.line()).decode()
        await peer.send("+OK Updated\r\n")
        await answer_login(peer)
        assert await answer == b"+OK Logged in"
        [session] = {record["session.id"] for record in rig.audit("login")}
        assert told == f"XCLIENT ADDR=127.0.0.1 PORT={port} SESSION={session} TTL=5\r\n"


async def test_server_that_refuses_to_be_told_is_not_used(tmp_path: Path) -> None:
    async with running(tmp_path, pool={"xclient": True}) as rig:
        _, answer = await log_in(rig)
        peer = await rig.backend.greeted()
        assert (await peer.line()).startswith(b"XCLIENT ")
        await peer.send("-ERR You are not from trusted IP\r\n")
        assert await answer == LATER
        assert await peer.rest() == b""
        assert rig.metrics.backend_errors[(rig.backend.address, "greeting", "rejected")] == 1
