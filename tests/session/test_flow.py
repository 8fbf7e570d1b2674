"""What flows and what piles up: pipelining, floods, back-pressure in the clear and under TLS, nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random
import ssl
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.peers.certs import Authority, CertificateFiles
from tests.session.rig import Peer, Rig, Transcript, answer_login, client_context, running, until

pytestmark = [pytest.mark.long, pytest.mark.every_loop]

MEBI = 1 << 20


def quiet(rig: Rig) -> bool:
    """No descriptor is ready that the reactor would be called for again and again."""
    return not rig.parts.reactor._epoll.poll(0, 16)


async def settled(rig: Rig) -> None:
    """Wait until the reactor has nothing to do, and stays so."""
    for _ in range(3):
        await until(lambda: quiet(rig), "the reactor to come to rest")
        await asyncio.sleep(0.01)


async def feed(peer: Peer, data: bytes) -> None:
    """Send until the other side ends the connection."""
    try:
        await peer.send(data, seconds=100)
    except (ConnectionError, TimeoutError):
        return


# ---- before the login ----


async def test_ten_thousand_pipelined_noops_are_all_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client = await rig.greeted()
        sending = asyncio.create_task(client.send(b"NOOP\r\n" * 10_000))
        assert await client.take(50_000) == b"+OK\r\n" * 10_000
        await sending
        client, backend = await rig.logged_in("TOP UIDL PIPELINING")
        sending = asyncio.create_task(client.send(b"NOOP\r\n" * 10_000))

        async def answer() -> None:
            for _ in range(100):
                assert await backend.take(600) == b"NOOP\r\n" * 100
                await backend.send(b"+OK\r\n" * 100)

        answering = asyncio.create_task(answer())
        assert await client.take(50_000) == b"+OK\r\n" * 10_000
        await asyncio.gather(sending, answering)


async def test_garbage_after_the_login_is_all_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await client.send(b"nonsense\r\n" * 300 + b"NOOP\r\n" + b"nonsense\r\n" * 300)
        answer = b"-ERR unknown command\r\n"
        assert await client.take(300 * len(answer)) == answer * 300
        await Transcript(client, backend).play("B: NOOP\nR: +OK\nS: +OK")
        assert await client.take(300 * len(answer)) == answer * 300


async def test_limit_of_bad_commands(tmp_path: Path) -> None:
    async with running(tmp_path, limits={"bad_commands": 3}) as rig:
        client = await rig.greeted()
        await client.send("a\r\nb\r\nNOOP\r\nc\r\nNOOP\r\n")
        replies = b"-ERR unknown command\r\n-ERR unknown command\r\n+OK\r\n-ERR too many errors\r\n"
        assert await client.rest() == replies
        await rig.ends("too_many_errors")


async def test_input_before_the_login_is_limited(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client = await rig.greeted()
        sending = asyncio.create_task(feed(client, b"NOOP\r\n" * 100_000))
        answers = await client.rest()
        await sending
        assert answers.endswith(b"-ERR too much input before the login\r\n")
        assert answers.count(b"+OK") <= 192 * 1024 // 6
        await rig.ends("protocol")


async def test_endless_line_before_the_login(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client = await rig.greeted()
        sending = asyncio.create_task(feed(client, b"x" * MEBI))
        assert b"-ERR line too long" in await client.rest()
        await sending
        await rig.ends("protocol")


async def test_browser_is_left_without_an_echo(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client = await rig.greeted()
        await client.send("GET /<script> HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await client.rest() == b"-ERR this is a POP3 server\r\n"
        await rig.ends("protocol")


async def test_login_has_a_deadline_in_total(tmp_path: Path) -> None:
    async with running(tmp_path, timeouts={"login": "400ms"}) as rig:
        client = await rig.greeted()

        async def drip() -> None:
            while True:
                await client.send("NOOP\r\n")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert (await client.rest()).endswith(b"-ERR you took too long to log in\r\n")
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        await rig.ends("login_timeout")


async def test_client_that_reads_no_answers_before_its_login_is_left(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client = await rig.greeted(receive=4096)
        worst = 0
        sending = asyncio.create_task(feed(client, b"CAPA\r\n" * 31_000))
        for _ in range(5000):
            for begun in [session._authorization for session in rig.service.sessions]:
                worst = max(worst, begun._dialogue.channel.pending if begun is not None else 0)
            if not rig.service.sessions:
                break
            await asyncio.sleep(0.001)
        assert worst < 256 * 1024, "answers pile up for a client that nobody knows"
        await sending
        await rig.ends("client_stall")


# ---- after it ----


async def test_client_that_reads_no_answers_is_read_no_more(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, _ = await rig.logged_in(receive=4096)
        (session,) = rig.service.sessions
        relay: Any = session._relay
        sending = asyncio.create_task(feed(client, b"x\r\n" * (10 * MEBI)))
        await until(lambda: relay._client.pending and not relay._client.reading, "back-pressure")
        await settled(rig)
        assert not sending.done()
        assert relay._client.pending < 2 * MEBI
        assert len(relay._exchange._lines or b"") < MEBI
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_flood_of_one_client_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        flooder, _ = await rig.logged_in()
        (session,) = rig.service.sessions
        flooded: Any = session._relay
        client, backend = await rig.logged_in()
        lines = 120_000
        sending = asyncio.create_task(feed(flooder, b"\r\n" * lines))
        reading = asyncio.create_task(flooder.take(lines * len(b"-ERR unknown command\r\n")))
        await until(lambda: flooded.octets[1] > 1000, "the first answers")
        await Transcript(client, backend).play("C: NOOP\nB: NOOP\nR: +OK\nS: +OK")
        assert not reading.done(), "the other client was answered after all of the flood"
        assert flooded.octets[1] < MEBI
        await asyncio.gather(sending, reading)


async def test_rest_of_an_endless_line_is_no_command(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in()
        await client.send(b"x" * 600)
        await client.expect("-ERR line too long")
        for inside in (b"DELE 1\r\n", b"x" * 600):
            if inside.startswith(b"x"):
                await client.send(inside)
                await client.expect("-ERR line too long")
            await client.send(b"DELE 1\r\n" if inside.startswith(b"D") else b"RETR 1\r\n")
            assert await backend.silent(), "the tail of an over-long line was run as a command"
        await Transcript(client, backend).play("C: STAT\nB: STAT\nR: +OK 1 2\nS: +OK 1 2")


async def test_backend_is_paused_for_a_slow_client_and_nothing_is_lost(
    tmp_path: Path, authority: Authority, server_certificate: CertificateFiles
) -> None:
    """TLS on both sides, both readers slow in turn."""
    keys = {"cert": str(server_certificate.cert), "key": str(server_certificate.key)}
    async with running(
        tmp_path,
        listener={"tls": "implicit"},
        tls={"certificates": [keys]},
        pool={"tls": "implicit", "ca": str(authority.ca), "allow_cleartext": False},
    ) as rig:
        client = await rig.client(receive=32768)
        await client.handshake(client_context(authority.ca))
        await client.line()
        await client.send("USER alice\r\nPASS canary-pw-alice\r\n")
        backend = await rig.backend.accept()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server_certificate.cert, server_certificate.key)
        await backend.handshake(context, server=True)
        await backend.send("+OK ready\r\n")
        await answer_login(backend, "TOP UIDL PIPELINING")
        await client.expect("+OK send PASS")
        await client.expect("+OK Logged in")
        (session,) = rig.service.sessions
        relay: Any = session._relay
        message = random.Random(1).randbytes(12 * MEBI).replace(b"\r\n.\r\n", b"")
        await client.send("RETR 1\r\n")
        await backend.expect("RETR 1")
        sending = asyncio.create_task(backend.send(b"+OK\r\n" + message + b"\r\n.\r\n", seconds=100))
        await until(lambda: relay._client.pending, "back-pressure")
        await settled(rig)
        assert not relay._backend.reading, "the backend is read for a client that takes nothing"
        assert relay._client.pending < 2 * MEBI
        digest = hashlib.sha256()
        await client.expect("+OK")
        left = len(message)
        while left:
            data = await client.take(min(left, 300_000))
            digest.update(data)
            left -= len(data)
            assert relay._client.pending < 2 * MEBI
        assert await client.take(5) == b"\r\n.\r\n"
        await sending
        assert digest.digest() == hashlib.sha256(message).digest()
        # the other way: more commands than the backend reads
        commands = b"".join(b"DELE %d\r\n" % number for number in range(1, 900_001))
        sending = asyncio.create_task(feed(client, commands))
        await until(lambda: not relay._client.reading, "back-pressure")
        await settled(rig)
        assert not sending.done()
        assert relay._backend.pending < MEBI
        assert len(relay._exchange._lines or b"") < MEBI
        for number in range(1, 2001):
            await backend.expect(f"DELE {number}")
            await backend.send("+OK\r\n")
        assert await client.take(2000 * 5) == b"+OK\r\n" * 2000
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        client.reset()


async def test_nothing_spins_while_one_side_waits_for_the_other(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        client, backend = await rig.logged_in(receive=4096)
        await Transcript(client, backend).play("C: RETR 1\nB: RETR 1\nR: +OK")
        sending = asyncio.create_task(feed(backend, b"x" * (30 * MEBI)))
        (session,) = rig.service.sessions
        relay: Any = session._relay
        await until(lambda: relay._client.pending, "back-pressure")
        await client.send("STAT\r\n" * 400)
        client.half_close()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        backend.half_close()
        await settled(rig)
        _gone, gone_backend = await rig.logged_in()
        gone_backend.close()
        await until(lambda: any(key[1] == "relay" for key, n in rig.metrics.backend_errors.items() if n), "the loss")
        await settled(rig)
        quit_client, quit_backend = await rig.logged_in()
        await quit_client.send("QUIT\r\nNOOP\r\n")
        quit_client.half_close()
        await settled(rig)
        quit_backend.close()
        client.reset()


async def test_client_that_vanishes_during_the_backends_login(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        for step in ("connect", "greeting", "CAPA", "USER", "PASS"):
            client = await rig.greeted()
            await client.send("USER alice\r\nPASS canary-pw-alice\r\n")
            backend = await rig.backend.accept()
            if step != "connect":
                await backend.send("+OK ready\r\n")
            while step not in ("connect", "greeting"):
                line = await backend.line()
                if line.decode().startswith(step):
                    break
                await backend.send("+OK\r\n.\r\n" if line == b"CAPA\r\n" else "+OK\r\n")
            client.reset()
            await until(lambda: not rig.service.sessions, "the session's end")
            assert b"QUIT" not in await backend.rest()
            assert backend.ended == "reset"
            rig.parts.pools["main"].backends[0]._known_until = 0.0
        await rig.ends(*["client_lost"] * 5)


async def test_backend_that_ends_right_behind_its_welcome(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        for how in ("half_close", "close"):
            client = await rig.greeted()
            await client.send("USER alice\r\nPASS canary-pw-alice\r\n")
            backend = await rig.backend.logged_in()
            getattr(backend, how)()
            await client.expect("+OK send PASS")
            await client.expect("+OK Logged in")
            await client.send("STAT\r\n")
            assert await client.rest() == b"-ERR [SYS/TEMP] the mail server is gone, nothing was deleted\r\n"


async def test_sessions_leave_nothing_behind(
    tmp_path: Path, authority: Authority, server_certificate: CertificateFiles
) -> None:
    keys = {"cert": str(server_certificate.cert), "key": str(server_certificate.key)}
    names = (
        "Session",
        "Relay",
        "Channel",
        "TlsLayer",
        "Exchange",
        "ServerConnection",
        "ClientConnection",
        "AuditTrail",
    )

    def counted() -> Counter[str]:
        found = Counter(type(thing).__name__ for thing in gc.get_objects())
        return Counter({name: found[name] for name in names if found[name]})

    sections: dict[str, Any] = {
        "listener": {"tls": "stls"},
        "more_listeners": [{"name": "pop3s", "listen": ["127.0.0.1:0"], "tls": "implicit"}],
        "tls": {"certificates": [keys]},
        "authentication": {"failure_delay": "0s"},
        "more_pools": {
            "dead": {"servers": ["127.0.0.1:1"], "tls": "none", "allow_cleartext": True},
        },
        "routing": {"rules": [{"user": "dead", "pool": "dead"}], "default": "main"},
    }
    async with running(tmp_path, **sections) as rig:

        async def session(number: int) -> None:
            kind = number % 8
            client = await rig.client("pop3s" if kind == 7 else "pop3")
            if kind == 7:  # a handshake that fails
                await client.send("nonsense\r\n")
                await client.rest()
            else:
                await client.line()
                if kind == 6:
                    assert await client.command("STLS") == b"+OK begin TLS"
                elif kind == 5:
                    await client.send("USER dead\r\nPASS canary-pw\r\n")
                    await client.line()
                    assert (await client.line()).startswith(b"-ERR [SYS/TEMP]")
                else:
                    await client.send("USER alice\r\nPASS canary-pw\r\n")
                    backend = await rig.backend.greeted()
                    if kind == 4:
                        backend.reset()
                    else:
                        await answer_login(backend, final="-ERR no" if kind == 3 else "+OK")
                        if kind < 3:
                            await client.line()
                            await client.line()
                        if kind == 0:
                            await client.send("QUIT\r\n")
                            await backend.expect("QUIT")
                            await backend.send("+OK bye\r\n")
                            await client.rest()
                        elif kind == 1:
                            backend.reset()
                            await client.send("STAT\r\n")
                            await client.rest()
                    await client.more() if kind == 3 else None
                    backend.close()
                    rig.backend.connections.remove(backend)
            client.close()
            rig.clients.remove(client)

        await session(0)
        await until(lambda: not rig.service.sessions and rig.parts.reactor.watching == 2, "all ends")
        gc.collect()
        gc.disable()
        try:
            before = counted()
            for number in range(400):
                await session(number)
            await until(lambda: not rig.service.sessions and rig.parts.reactor.watching == 2, "all ends")
            await asyncio.sleep(0.05)
            after = counted()
        finally:
            gc.enable()
        timed = {name: count - before[name] for name, count in after.items() if count > before[name]}
        # what lingered is held by its timer for two seconds
        assert timed.pop("Channel", 0) <= 400
        assert timed == {}, "cycles that only the collector finds"
