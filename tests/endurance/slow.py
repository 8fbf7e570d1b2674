"""Thousands of clients that are slow in one way, and others who log in beside them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.endurance.watch import Health, beside, memory
from tests.faults.play import Door
from tests.peers.canaries import canary
from tests.peers.proxy import Proxy

OPENED_AT_ONCE = 100
A_SECOND = 20.0
"""Healthy logins."""


SETTLING = 120.0
"""Seconds to let the crowd come in: what is measured is not how many can log in at once."""


@dataclass(frozen=True)
class Found:
    """What those who log in notice: seconds to the login. `memory`: kB for each slow client."""

    kind: str
    clients: int
    logins: int
    failed: list[str]
    median: float
    p99: float
    memory: float


class _Slow:
    """Many sockets that somebody has to feed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sockets: list[socket.socket] = []

    async def open(self, count: int, first: Callable[[int], bytes]) -> None:
        """Connect, and say `first`."""
        for start in range(0, count, OPENED_AT_ONCE):
            await asyncio.gather(
                *(self._one(first, number) for number in range(start, min(count, start + OPENED_AT_ONCE)))
            )
            await asyncio.sleep(0.2 if b"PASS" in first(0) else 0)  # the server may be in Python, too

    async def _one(self, first: Callable[[int], bytes], number: int) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        sock.bind((f"127.0.{1 + number // 250}.{1 + number % 250}", 0))
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        self.sockets.append(sock)
        if octets := first(number):
            await asyncio.get_running_loop().sock_sendall(sock, octets)

    async def drip(self, octets: bytes) -> None:
        """One octet to everybody, again and again."""
        number = 0
        while True:
            for place, sock in enumerate(self.sockets):
                with contextlib.suppress(OSError):
                    sock.send(octets[number % len(octets) : number % len(octets) + 1])
                if place % 20 == 0:
                    await asyncio.sleep(0)
            number += 1
            await asyncio.sleep(1)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


async def nothing(_slow: _Slow) -> None:
    await asyncio.Event().wait()


def log_in(number: int) -> bytes:
    """Each as somebody else: of one user only some may be judged at a time. The benchmark's server gives b* 10 MB."""
    return f"USER big{number}\r\nPASS {canary()}\r\n".encode()


KINDS: dict[str, tuple[str, Callable[[int], bytes], Callable[[_Slow], Awaitable[None]]]] = {
    "silent": ("pop3", lambda _number: b"", nothing),
    "dripping": ("pop3", lambda _number: b"", lambda slow: slow.drip(b"NOOP\r\n")),
    "endless line": ("pop3", lambda _number: b"USER ", lambda slow: slow.drip(b"x")),
    "half a handshake": ("pop3s", lambda _number: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 40, nothing),
    "idle in the maildrop": ("pop3", log_in, nothing),
    "reads no message": ("pop3", lambda number: log_in(number) + b"RETR 1\r\n", nothing),
}
"""By name: which listener, what is said first, and what goes on then."""
FED = ("reads no message",)
"""Kinds that need a server with more breath than one in Python has."""


async def crowd(proxy: Proxy, door: Door, kind: str, clients: int, seconds: float) -> Found:
    """So many of a kind for so long, with healthy logins beside."""
    listener, first, go_on = KINDS[kind]
    slow = _Slow(proxy.port(listener))
    before = await asyncio.to_thread(memory, proxy.worker)
    try:
        await slow.open(clients, first)
        if b"PASS" in first(0):
            await _settled(proxy, clients)
        feeding = asyncio.ensure_future(go_on(slow))
        try:
            async with beside(Health(door, A_SECOND)) as health:
                await asyncio.sleep(seconds)
                with_them = await asyncio.to_thread(memory, proxy.worker)
        finally:
            feeding.cancel()
    finally:
        slow.close()
    return Found(
        kind, clients, len(health.took), health.failed, health.percentile(0.5), health.percentile(0.99),
        (with_them - before) * 1024 / clients,
    )  # fmt: skip


async def _settled(proxy: Proxy, clients: int) -> None:
    """All have logged in."""
    async with asyncio.timeout(SETTLING):
        while True:
            metrics = await asyncio.to_thread(proxy.metrics)
            shown = [
                value
                for name, value in metrics.items()
                if name.startswith("popproxy_sessions{") and "transaction" in name
            ]
            if sum(shown) >= clients:
                return
            await asyncio.sleep(0.5)
