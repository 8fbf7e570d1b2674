"""Ten thousand messages made to break a relay, cut at the worst places: every one must arrive as it was sent."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.canaries import canary
from tests.peers.certs import Authority, CertificateFiles
from tests.peers.messages import multiline, unstuffed
from tests.peers.proxy import Proxy, StartProxy, settings
from tests.peers.raw import RawClient
from tests.peers.scripted import ScriptedBackend

MESSAGES = 10_000
IN_A_SESSION = 250
SEED = int(os.environ.get("POPPROXY_TEST_SEED", "1939"))

_ATOMS = (
    b"\r\n", b"\r\n", b"\r\n", b".", b".", b"..", b"\r\n.", b"\r\n..\r\n", b"\n", b"\r", b"\n.\n", b"\r.\r", b"\n.\r\n",
    b"\r\r\n", b"\r\n.\r", b"\0", b"\0\0.\0", b"\x80\xff\xfe", "日本語".encode(), b"+OK 3 octets\r\n",
    b"-ERR [SYS/TEMP] no\r\n", b"QUIT\r\n", b" ", b"a", b"hello, world", b"From ada@example.org\r\n", b"\x1b[2J",
)  # fmt: skip
_FIXED = (
    b"", b".", b"..", b"\r", b"\n", b"\r\n", b".\r\n", b".\n", b"\n.\n", b"\r\n.\r\n", b"\r\n\r\n", b"\r.\r\n", b"\0",
    b"no final line end", b"a\r", b"a\n", b"a\r\n.", b"...\r\n..\r\n.\r\n", b"x\r\n\r\n.\r\n\r\n", b"\r\n" * 500,
    b".\r\n" * 500, b"..\r\n" * 500, b"\n" * 500, b"\r" * 500, b"." * 5000,
)  # fmt: skip


def _message(number: int, chance: random.Random) -> bytes:
    if number < len(_FIXED):
        return _FIXED[number]
    if number % 2500 == 2499:
        return chance.choice((b"x", b".", b"\0")) * (1 << 20)
    if number % 500 == 499:
        return chance.randbytes(chance.randrange(30_000, 120_000))
    return b"".join(chance.choices(_ATOMS, k=chance.randrange(60)))


def _cuts(chance: random.Random) -> Iterator[int]:
    """Endless sizes of pieces: mostly tiny ones where marks are cut, sometimes everything that is left."""
    while True:
        yield chance.choice((1, 1, 2, 3, 4, 5, 7, 64, 1000, 1 << 22))


class Cutter:
    """Cuts replies before, in and after the places where a relay looks: line ends, dots, the termination octets."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._sizes = _cuts(chance)

    def __call__(self, reply: bytes) -> Iterator[bytes]:
        style = self._chance.randrange(4)
        if style == 0:
            yield reply
        elif style == 1:  # in the termination octets
            cut = max(1, len(reply) - self._chance.randrange(1, 7))
            yield reply[:cut]
            yield reply[cut:]
        elif style == 2 and len(reply) < 400:  # octet by octet
            for index in range(len(reply)):
                yield reply[index : index + 1]
        else:
            start = 0
            for count, size in enumerate(self._sizes):
                end = len(reply) if count > 40 else start + size
                yield reply[start:end]
                start = end
                if start >= len(reply):
                    return


async def _retrieve_all(client: RawClient, user: str, password: str, first: int, *, pipelined: bool) -> int:
    """Reads a whole maildrop in one session; returns how many messages differ from what was sent."""
    assert (await client.login(user, password)).startswith(b"+OK")
    expected = [_digest(multiline(message)) for message in DROP[first : first + IN_A_SESSION]]
    numbers = range(1, len(expected) + 1)
    if pipelined:
        await client.send(b"".join(b"RETR %d\r\n" % number for number in numbers))
    wrong = 0
    for number, digest in zip(numbers, expected, strict=True):
        if not pipelined:
            await client.send(b"RETR %d\r\n" % number)
        status = await client.line()
        assert status.startswith(b"+OK"), (first, number, status)
        wrong += _digest(await client.body()) != digest
    assert (await client.command("QUIT")).startswith(b"+OK")
    return wrong


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


DROP = [_message(number, random.Random(SEED * 1_000_003 + number)) for number in range(MESSAGES)]


def test_the_stuffing_of_the_tests_is_undone_without_loss() -> None:
    for message in DROP:
        whole = message if not message or message.endswith(b"\r\n") else message + b"\r\n"
        assert unstuffed(multiline(message)) == whole


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("transport", "pipelined", "count"),
    [
        ("plain", True, MESSAGES),
        ("tls", False, MESSAGES),
        ("plain", False, MESSAGES // 10),
        ("tls", True, MESSAGES // 10),
    ],
)
async def test_adversarial_messages_arrive_unchanged(
    start_proxy: StartProxy,
    authority: Authority,
    server_certificate: CertificateFiles,
    transport: str,
    pipelined: bool,
    count: int,
) -> None:
    print(f"POPPROXY_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    secret = canary()
    share = range(0, count, IN_A_SESSION)
    async with ScriptedBackend(
        chunks=Cutter(chance), capa=["TOP", "UIDL", "PIPELINING"] if pipelined else None
    ) as backend:
        proxy: Proxy = await asyncio.to_thread(start_proxy, settings(backend.address, server_certificate))
        ca: Path | None = authority.ca if transport == "tls" else None
        port = proxy.port("pop3s" if ca else "pop3")
        wrong = 0
        for first in share:
            backend.maildrop = DROP[first : first + IN_A_SESSION]
            async with RawClient(port, ca=ca) as client:
                wrong += await _retrieve_all(client, f"user{first}", secret, first, pipelined=pipelined)

    assert wrong == 0
    assert sum(session.updated for session in backend.sessions) == len(share)
    if not pipelined:
        assert sum(session.ahead for session in backend.sessions) == 0
    records = await asyncio.to_thread(proxy.settled)
    retrievals = [record for record in records if record["event.action"] == "retr"]
    assert [r["pop3.octets"] for r in retrievals] == [len(multiline(message)) - 3 for message in DROP[:count]]
    assert all(record["pop3.complete"] for record in retrievals)


async def test_client_may_pipeline_to_a_backend_that_cannot(start_proxy: StartProxy) -> None:
    async with ScriptedBackend(DROP[:IN_A_SESSION], capa=["TOP", "UIDL"]) as backend:
        proxy: Proxy = await asyncio.to_thread(start_proxy, settings(backend.address))
        async with RawClient(proxy.port()) as client:
            assert await _retrieve_all(client, "alice", canary(), 0, pipelined=True) == 0

    assert sum(session.ahead for session in backend.sessions) == 0
