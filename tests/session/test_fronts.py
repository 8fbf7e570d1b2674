"""Fronts that say by XCLIENT for whom they have come: believed from named networks, strictly, and nobody else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.peers.certs import Authority, CertificateFiles
from tests.peers.process import free_port
from tests.session.rig import Peer, Rig, answer_login, client_context, running, until

FRONT: dict[str, Any] = {"listener": {"xclient": ["127.0.0.1/32"]}}
TOLD = "XCLIENT ADDR=203.0.113.7 PORT=40007 SESSION=qJ+/a:p1 TTL=4 FORWARD=Zm9v"
LOGIN = "USER alice\r\nPASS canary-pw-alice\r\n"


async def through(rig: Rig, told: str = TOLD) -> tuple[Peer, Peer]:
    """A front, in the way of Dovecot's: XCLIENT and the login in one segment. It and the server's end."""
    front = await rig.client()
    await front.expect("+OK [XCLIENT] POP3 ready")
    await front.send(f"{told}\r\n{LOGIN}")
    await front.expect("+OK Updated")
    await front.expect("+OK send PASS")
    peer = await rig.backend.greeted()
    return front, peer


async def test_address_that_a_front_names_is_the_clients(tmp_path: Path) -> None:
    async with running(tmp_path, **FRONT, pool={"xclient": True}) as rig:
        front, peer = await through(rig)
        [before] = [session.view() for session in rig.service.sessions]
        assert before.address == "203.0.113.7:40007"
        told = (await peer.line()).decode()
        await peer.send("+OK\r\n")
        await answer_login(peer)
        await front.expect("+OK Logged in")
        front.close()
        await until(lambda: rig.audit("session_end"), "the end")
        for record in rig.audit("login") + rig.audit("session_end"):
            assert (record["source.ip"], record["source.port"]) == ("203.0.113.7", 40007)
            assert record["client.nat.ip"] == "127.0.0.1"
            assert record["popproxy.front_session"] == "qJ+/a:p1"
        session = rig.audit("login")[0]["session.id"]
        assert told == f"XCLIENT ADDR=203.0.113.7 PORT=40007 SESSION={session} TTL=3\r\n"


async def test_strangers_are_not_told_of_xclient_and_refused(tmp_path: Path) -> None:
    async with running(tmp_path, **FRONT) as rig:
        client = await rig.client(source="127.0.0.2")
        await client.expect("+OK POP3 ready")
        assert (await client.command(TOLD)).startswith(b"-ERR")
        await client.send("CAPA\r\n")
        while (line := await client.line()) != b".\r\n":
            assert b"XCLIENT" not in line
        await client.send(LOGIN)
        await rig.backend.logged_in()
        await client.expect("+OK send PASS")
        await client.expect("+OK Logged in")
        [record] = rig.audit("login")
        assert record["source.ip"] == "127.0.0.2"


@pytest.mark.parametrize(
    "told",
    [
        "XCLIENT ",
        "XCLIENT PORT=1",
        "XCLIENT ADDR=203.0.113.7",
        "XCLIENT ADDR=203.0.113.7 PORT=0",
        "XCLIENT ADDR=203.0.113.7 PORT=65536",
        "XCLIENT ADDR=203.0.113.7 PORT=+1",
        "XCLIENT ADDR=203.0.113.07 PORT=1",
        "XCLIENT ADDR=fe80::1%eth0 PORT=1",
        "XCLIENT ADDR=[UNAVAILABLE] PORT=1",
        "XCLIENT ADDR=0.0.0.0 PORT=1",
        "XCLIENT ADDR=192.0.2.1 ADDR=192.0.2.2 PORT=1",
        "XCLIENT ADDR=192.0.2.1  PORT=1",
        "XCLIENT ADDR=192.0.2.1 PORT=1 SESSION=a\"b",
        "XCLIENT ADDR=192.0.2.1 PORT=1 SESSION=" + "x" * 129,
        "XCLIENT ADDR=192.0.2.1\tPORT=1",
        "XCLIENT ADDR=192.0.2.1 PORT=1 FORWARD=\x1b[2J",
        "XCLIENT ADDR=192.0.2.1 PORT=1 TTL=-1",
        "XCLIENT ADDR=192.0.2.1 PORT=1 TTL=0",
        "XCLIENT ADDR=192.0.2.1 PORT=1 TTL=1",
        "XCLIENT ADDR=192.0.2.1 PORT=1 PROTO=IMAP",
    ],
)  # fmt: skip
async def test_front_that_says_it_wrongly_is_sent_away_before_its_login(tmp_path: Path, told: str) -> None:
    async with running(tmp_path, **FRONT) as rig:
        front = await rig.greeted()
        await front.send(f"{told}\r\n{LOGIN}")
        answer = await front.rest()
        assert answer.startswith(b"-ERR ")
        assert answer.count(b"\r\n") == 1, "the login behind it was answered"
        await rig.ends("xclient")
        assert rig.audit("auth") == []
        assert [record["source.ip"] for record in rig.audit("session_end")] == ["127.0.0.1"]


async def test_front_comes_for_one_client_only(tmp_path: Path) -> None:
    async with running(tmp_path, listener={"xclient": ["127.0.0.0/8", "203.0.113.0/24"]}) as rig:
        front = await rig.greeted()
        assert await front.command(TOLD) == b"+OK Updated"
        assert (await front.command(TOLD.replace("203", "198"))).startswith(b"-ERR")
        assert [session.view().address for session in rig.service.sessions] == ["203.0.113.7:40007"]


async def test_passwords_in_clear_go_over_the_fronts_link_and_tls_comes_first(
    tmp_path: Path, authority: Authority, server_certificate: CertificateFiles
) -> None:
    pair = {"cert": str(server_certificate.cert), "key": str(server_certificate.key)}
    listener = {"tls": "stls", "certificates": [pair], "xclient": ["127.0.0.1/32"], "cleartext_networks": []}
    async with running(tmp_path, listener=listener) as rig:
        front = await rig.greeted()
        await front.command("STLS")
        await front.handshake(client_context(authority.ca))
        assert await front.command(TOLD) == b"+OK Updated"
        await front.send(LOGIN)
        await rig.backend.logged_in()
        await front.expect("+OK send PASS")
        await front.expect("+OK Logged in")
        [record] = rig.audit("login")
        assert (record["source.ip"], record["tls.version"]) == ("203.0.113.7", "1.3")
        bare = await rig.greeted()
        assert await bare.command(TOLD) == b"+OK Updated"
        assert (await bare.command("USER alice")).startswith(b"-ERR passwords are not taken")
        assert (await bare.command("STLS")).startswith(b"-ERR"), "it would have to forget who the client is"
    listener = {"xclient": ["127.0.0.1/32"], "cleartext_networks": ["127.0.0.1/32"]}
    async with running(tmp_path, listener=listener) as rig:
        front, peer = await through(rig)
        await answer_login(peer)
        await front.expect("+OK Logged in")


async def test_limit_of_connections_is_the_clients_not_the_fronts(tmp_path: Path) -> None:
    async with running(tmp_path, **FRONT, limits={"connections_per_address": 2}) as rig:
        fronts = [await rig.greeted() for _ in range(5)]
        for front in fronts[:2]:
            assert await front.command(TOLD) == b"+OK Updated"
        assert await fronts[2].command(TOLD) == b"-ERR [SYS/TEMP] too many connections, try again later"
        assert await fronts[3].command(TOLD.replace("203", "198")) == b"+OK Updated"
        assert rig.metrics.connections_refused[("pop3", "address_limit")] == 1
        await until(lambda: rig.parts.admission.connections == 4, "the end of the refused one")


async def test_wrong_passwords_count_against_the_client_not_the_front(tmp_path: Path) -> None:
    penalties = {"address": {"free": 3, "per_minute": 1}}
    async with running(tmp_path, **FRONT, penalties=penalties) as rig:

        async def refuse() -> None:
            while True:
                await answer_login(await rig.backend.greeted(), final="-ERR [AUTH] no")

        async def guess(number: int, host: str) -> bytes:
            front = await rig.greeted()
            assert await front.command(f"XCLIENT ADDR={host} PORT=1") == b"+OK Updated"
            await front.command(f"USER user{number}")
            refusing = asyncio.create_task(refuse())
            answer = await front.command(f"PASS wrong-{number}")
            refusing.cancel()
            front.close()
            return answer

        last = b""
        for number in range(8):
            last = await guess(number, "203.0.113.7")
        assert last.startswith(b"-ERR [SYS/TEMP] too many wrong passwords")
        assert (await guess(1000, "203.0.113.8")).startswith(b"-ERR [AUTH]")


async def test_proxies_that_point_at_each_other_end_it(tmp_path: Path) -> None:
    port = free_port()
    listener = {"listen": [f"127.0.0.1:{port}"], "xclient": ["127.0.0.1/32"]}
    pool = {"servers": [f"127.0.0.1:{port}"], "xclient": True}
    async with running(tmp_path, listener=listener, pool=pool) as rig:
        client = await rig.client()
        await client.expect("+OK [XCLIENT] POP3 ready")
        await client.send(LOGIN)
        await client.expect("+OK send PASS")
        assert (await client.line()).startswith(b"-ERR [SYS/TEMP]")
        client.close()
        await until(lambda: not rig.service.sessions, "the end of all sessions")
        reasons = [record["event.reason"] for record in rig.audit("session_end")]
        assert reasons.count("xclient") == 1
        assert len(reasons) <= 6
