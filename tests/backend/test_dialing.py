"""From a pool to an open maildrop: failover, budgets, and no octet of a credential over a link that is not safe."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from popproxy.errors import ConnectFailed
from popproxy.net import names
from popproxy.net.names import Resolver
from popproxy.types import Address
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.process import free_port
from tests.session.rig import Backend, Peer, Rig, answer_login, running, until

pytestmark = pytest.mark.every_loop

LATER = b"-ERR [SYS/TEMP] temporary problem, try again later"


async def log_in(rig: Rig) -> tuple[Peer, asyncio.Task[bytes]]:
    """A client that has sent its password; the task is the answer to it."""
    client = await rig.greeted()
    assert (await client.command("USER alice")).startswith(b"+OK")
    return client, asyncio.create_task(client.command("PASS canary-pw-alice"))


def server_context(certificate: CertificateFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)
    return context


def unused() -> str:
    """An address where nobody listens."""
    return f"127.0.0.1:{free_port()}"


@contextlib.contextmanager
def full_backlog() -> Any:
    """An address that answers no SYN any more."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
            fillers.append(filler)
        yield f"127.0.0.1:{sock.getsockname()[1]}"
        for filler in fillers:
            filler.close()


# ---- connecting ----


async def test_nobody_listens(tmp_path: Path) -> None:
    async with running(tmp_path, pool={"servers": [unused()]}) as rig:
        client, answer = await log_in(rig)
        assert await answer == LATER
        assert await client.command("NOOP") == b"+OK", "a failure of ours ends no connection"


async def test_blackhole_is_given_up_within_the_budget(tmp_path: Path) -> None:
    with full_backlog() as hole:
        async with running(tmp_path, pool={"servers": [hole]}, timeouts={"connect": "200ms"}) as rig:
            started = time.monotonic()
            _, answer = await log_in(rig)
            assert await answer == LATER
            assert time.monotonic() - started < 3
            assert rig.metrics.backend_errors[(hole, "connect", "timeout")] == 1


async def test_no_descriptor_left_for_the_backend(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        _, first = await log_in(rig)
        await rig.backend.logged_in()
        await first
        client = await rig.greeted()
        await client.send("USER alice\r\n")
        await client.line()
        hoard: list[socket.socket] = []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
            with contextlib.suppress(OSError):
                while True:
                    hoard.append(socket.socket())
            await client.send("PASS canary-pw-alice\r\n")
            answer = await client.line()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for sock in hoard:
                sock.close()
        assert answer == LATER + b"\r\n"


@pytest.mark.parametrize(
    "greeting",
    ["-ERR busy\r\n", "garbage\r\n", "+OK one\r\n+OK two\r\n", "x" * 9000, "\0\r\n", "FIN", "RST"],
)
async def test_next_server_is_tried_before_the_credential(tmp_path: Path, greeting: str) -> None:
    first, second = Backend(), Backend()
    pool = {"servers": [first.address, second.address], "shared": True}
    async with running(tmp_path, backend=first, pool=pool) as rig:
        _, answer = await log_in(rig)
        peer = await first.accept()
        if greeting == "FIN":
            peer.close()
        elif greeting == "RST":
            peer.reset()
        else:
            await peer.send(greeting)
            assert await peer.rest() == b""
        lines = await answer_login(await second.greeted())
        assert lines[-1] == b"PASS canary-pw-alice\r\n"
        assert await answer == b"+OK Logged in"
        second.close()


async def test_no_other_server_after_the_first_credential_octet(tmp_path: Path) -> None:
    first, second = Backend(), Backend()
    pool = {"servers": [first.address, second.address], "shared": True}
    async with running(tmp_path, backend=first, pool=pool) as rig:
        client, answer = await log_in(rig)
        peer = await first.greeted()
        await peer.expect("CAPA")
        await peer.send("+OK\r\n.\r\n")
        await peer.expect("USER alice")
        await peer.send("+OK\r\n")
        await peer.expect("PASS canary-pw-alice")
        peer.reset()
        assert await answer == LATER
        with pytest.raises(TimeoutError):
            await second.accept(0.1)
        assert await client.command("NOOP") == b"+OK"
        second.close()


async def test_maildrops_that_are_not_shared_are_looked_for_at_one_server_only(tmp_path: Path) -> None:
    async with running(tmp_path, timeouts={"backend_login": "500ms"}) as rig:
        _, answer = await log_in(rig)
        peer = await rig.backend.greeted()
        assert await answer == LATER
        assert await peer.rest() == b"CAPA\r\n"
        with pytest.raises(TimeoutError):
            await rig.backend.accept(0.05)


@pytest.mark.parametrize("final", ["garbage", "+OK\r\n+OK extra", "x" * 9000, ""])
async def test_broken_answers_to_the_password(tmp_path: Path, final: str) -> None:
    async with running(tmp_path) as rig:
        _, answer = await log_in(rig)
        peer = await rig.backend.greeted()
        await answer_login(peer, final=final)
        assert await answer == LATER
        assert await peer.rest() == b""


# ---- names ----


class NameService:
    """Looks names up, or fails, or falls silent."""

    mood = "well"
    asked = 0

    async def addresses(self, host: str) -> tuple[list[str], float]:
        self.asked += 1
        if self.mood == "silent":
            await asyncio.sleep(3600)
        if self.mood == "down":
            raise ConnectFailed(f"{host} does not resolve", "dns")
        return ["192.0.2.1"], 30.0


async def test_old_addresses_serve_while_the_name_service_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "PATIENCE", 0.05)
    service = NameService()

    class Loop:
        def time(self) -> float:
            return clock_now[0]

        create_task = asyncio.get_running_loop().create_task

    clock_now = [0.0]
    resolver = Resolver(Loop(), service.addresses)  # type: ignore[arg-type]
    mail = Address("mail.example.com", 110)
    assert resolver.known(mail) is None
    found = [Address("192.0.2.1", 110)]
    assert await resolver.resolve(mail) == found
    for mood in ("down", "silent"):
        clock_now[0] += 31
        assert resolver.known(mail) is None
        service.mood = mood
        assert await resolver.resolve(mail) == found
        assert resolver.known(mail) == found, "nobody waits for a name service that has just not answered"
    service.mood = "down"
    with pytest.raises(ConnectFailed):
        await resolver.resolve(Address("other.example.com", 110))
    assert service.asked == 4
    resolver.close()


@pytest.mark.parametrize("ours", [True, False])
async def test_server_sees_the_address_that_it_is_to_see(tmp_path: Path, ours: bool) -> None:
    source = "127.0.0.9" if ours else "192.0.2.1"
    async with running(tmp_path, pool={"source_address": source}) as rig:
        _, answer = await log_in(rig)
        if ours:
            peer = await rig.backend.logged_in()
            assert peer.sock.getpeername()[0] == source
            assert await answer == b"+OK Logged in"
        else:
            assert await answer == LATER
            assert rig.metrics.backend_errors[(rig.backend.address, "connect", "other")] == 1


# ---- TLS ----


@pytest.mark.parametrize("how", ["stls", "implicit"])
@pytest.mark.parametrize("fault", ["wrong-host", "expired", "self-signed", "plain", "silent"])
async def test_no_credential_over_a_link_that_is_not_verified(
    tmp_path: Path, authority: Authority, how: str, fault: str
) -> None:
    certificate = {
        "wrong-host": authority.wrong_host,
        "expired": authority.expired,
        "self-signed": Authority(tmp_path, "another authority").server,
    }.get(fault, authority.server)()
    pool = {"tls": how, "ca": str(authority.ca), "allow_cleartext": False}
    timeouts = {"handshake": "500ms", "connect": "500ms", "backend_login": "1s"} if fault == "silent" else {}
    async with running(tmp_path, pool=pool, timeouts=timeouts) as rig:
        rig.expected_errors.append("TLS to a backend failed")
        _, answer = await log_in(rig)
        peer = await rig.backend.accept()
        if how == "stls":
            await peer.send("+OK ready\r\n")
            await peer.expect("STLS")
            await peer.send("+OK begin\r\n")
        if fault == "plain":
            await peer.send("+OK what is TLS?\r\n")
        elif fault != "silent":
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                await peer.handshake(server_context(certificate), server=True)
                await peer.rest()
        assert await answer == LATER
        assert b"alice" not in await peer.rest() + bytes(peer.received)
        assert {key[1] for key, count in rig.metrics.backend_errors.items() if count} == {"tls"}


@pytest.mark.parametrize(
    "answer_to_stls",
    ["-ERR no\r\n", "+OK go\r\n+OK injected\r\n", "+OK go\r\n+", "+OK go\r\nUSER\r\n", "what?\r\n", ""],
)
async def test_stls_that_is_stripped_refused_or_injected(
    tmp_path: Path, authority: Authority, answer_to_stls: str
) -> None:
    pool = {"tls": "stls", "ca": str(authority.ca), "allow_cleartext": False}
    async with running(tmp_path, pool=pool) as rig:
        _, answer = await log_in(rig)
        peer = await rig.backend.greeted()
        await peer.expect("STLS")
        if answer_to_stls:
            await peer.send(answer_to_stls)
        else:
            peer.half_close()
        assert await answer == LATER
        assert await peer.rest() == b"", "octets in the clear behind a STLS that failed"
        assert peer.ended == "reset"


async def test_stls_with_a_good_certificate(
    tmp_path: Path, authority: Authority, server_certificate: CertificateFiles
) -> None:
    pool = {"tls": "stls", "ca": str(authority.ca), "allow_cleartext": False}
    async with running(tmp_path, pool=pool) as rig:
        client, answer = await log_in(rig)
        peer = await rig.backend.greeted()
        await peer.expect("STLS")
        await peer.send("+OK begin\r\n")
        await peer.handshake(server_context(server_certificate), server=True)
        lines = await answer_login(peer)
        assert lines == [b"CAPA\r\n", b"USER alice\r\n", b"PASS canary-pw-alice\r\n"]
        assert await answer == b"+OK Logged in"
        await client.send("STAT\r\n")
        await peer.expect("STAT")
        await peer.send("+OK 1 2\r\n")
        await client.expect("+OK 1 2")


async def test_server_name_of_the_pool_is_what_the_certificate_must_carry(tmp_path: Path, authority: Authority) -> None:
    certificate = authority.issue("mail.example.com", file="named")
    pool = {
        "tls": "implicit", "ca": str(authority.ca), "allow_cleartext": False, "server_name": "mail.example.com",
    }  # fmt: skip
    async with running(tmp_path, pool=pool) as rig:
        _, answer = await log_in(rig)
        peer = await rig.backend.accept()
        await peer.handshake(server_context(certificate), server=True)
        await peer.send("+OK ready\r\n")
        await answer_login(peer)
        assert await answer == b"+OK Logged in"
        await until(lambda: rig.service.sessions, "the session")
