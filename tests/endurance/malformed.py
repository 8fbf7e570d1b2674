"""Sessions that are nothing but nonsense, beside a client that does everything right."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from dataclasses import dataclass

from tests.endurance.watch import Health, beside, descriptors, memory
from tests.faults.play import Door
from tests.fuzz.targets import TARGETS
from tests.peers.proxy import Proxy
from tests.session.rig import Peer

AT_ONCE = 40
_ODD = (
    b"\0", b"\n", b"\r", b"\r\n", b"\xff" * 20, b"x" * 600, b"A" * 200_000, b"\x16\x03\x01\x02\x00\x01",
    b"GET / HTTP/1.0\r\n\r\n", b"STLS\r\nUSER injected\r\n", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", b"AUTH PLAIN ====\r\n", b"AUTH GSSAPI " + b"A" * 9000 + b"\r\n",
    b"XCLIENT ADDR=1.2.3.4\r\n", b"USER " + b"\xf0\x9f\x92\xa9" * 70 + b"\r\n", b"PASS\r\n" * 12, b"QUIT extra\r\n",
    b"RETR 99999999999999999999\r\n", b"TOP 1 -1\r\n", b"DELE " + b"1" * 255 + b"\r\n",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What came of it. Memory in MiB; before and after, all sessions being over."""

    sessions: int
    healthy: int
    unhealthy: list[str]
    memory: tuple[float, float]
    descriptors: tuple[int, int]


def nonsense(chance: random.Random) -> list[bytes]:
    """What one session sends, piece by piece."""
    name = chance.choice(("client", "client", "kpop", "proxy", "hello", "stls"))
    octets = bytearray(b"".join(chance.choice(TARGETS[name].seeds)[4:] for _ in range(chance.randint(1, 3))))
    if chance.random() < 0.3:
        octets[:0] = b"USER mad\r\nPASS canary-pw-mad\r\nSTAT\r\n"
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(octets) + 1)
        match chance.randrange(5):
            case 0:
                octets[at:at] = chance.choice(_ODD)
            case 1:
                octets[at:at] = chance.choice(TARGETS[name].words)
            case 2:
                del octets[at : at + chance.randint(1, 40)]
            case 3:
                octets[at : at + 1] = chance.randbytes(chance.randint(1, 30))
            case _:
                octets += octets[: chance.randint(0, 200)]
    pieces = []
    while octets:
        size = chance.choice((1, 7, 100, 5000, 300_000))
        pieces.append(bytes(octets[:size]))
        del octets[:size]
        if len(pieces) > 20:
            return [*pieces, bytes(octets)]
    return pieces


async def one(door: Door, chance: random.Random) -> None:
    """A session of nonsense; ended by popproxy, or after a little by FIN or RST."""
    with contextlib.suppress(OSError, ssl.SSLError, TimeoutError, AssertionError):
        sock = await Door(door.port).connect("127.0.0.1")
        try:
            if door.tls is not None and chance.random() < 0.7:
                await sock.handshake(door.tls, "localhost")
            for piece in nonsense(chance):
                await sock.send(piece, 2)
                if chance.random() < 0.2:
                    await _read(sock, 0.01)
            await _read(sock, chance.choice((0, 0.01, 0.1)))
        finally:
            sock.reset() if chance.random() < 0.4 else sock.close()


async def _read(peer: Peer, seconds: float) -> None:
    if seconds:
        with contextlib.suppress(TimeoutError):
            while await peer.more(seconds):
                peer.received.clear()


async def flood(proxy: Proxy, doors: list[Door], sessions: int, seed: int) -> Found:
    """So many sessions of nonsense, at all doors, and one healthy login a second."""
    chance = random.Random(seed)
    places = asyncio.Semaphore(AT_ONCE)

    async def placed(number: int) -> None:
        async with places:
            await one(doors[number % len(doors)], random.Random(chance.random()))

    async with beside(Health(doors[0], 1.0)) as health:
        warming = max(100, sessions // 10)
        await asyncio.gather(*map(placed, range(warming)))
        before = await _rest(proxy)
        for start in range(warming, sessions, 1000):
            await asyncio.gather(*map(placed, range(start, min(sessions, start + 1000))))
    after = await _rest(proxy)
    return Found(sessions, len(health.took), health.failed, (before[0], after[0]), (before[1], after[1]))


async def _rest(proxy: Proxy) -> tuple[float, int]:
    """Memory and descriptors, once what lingers is over."""
    async with asyncio.timeout(60):
        while True:
            metrics = await asyncio.to_thread(proxy.metrics)
            if sum(value for name, value in metrics.items() if name.startswith("popproxy_sessions{")) <= 1:
                break
            await asyncio.sleep(0.2)
    await asyncio.sleep(3)
    return await asyncio.to_thread(memory, proxy.worker), min(
        [await asyncio.to_thread(descriptors, proxy.worker) for _ in range(5)]
    )
