"""Somebody who guesses passwords, from any number of addresses, as fast as the server lets him."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.peers.canaries import canary

_PATIENCE = 60.0
_PAUSE = 0.1  # seconds before the next connection where one was refused


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one guess: seconds since the start, from where, and the reply to PASS."""

    at: float
    source: str
    reply: bytes

    @property
    def looked_at(self) -> bool:
        """The server says that the password is wrong. (What else it may say: come back later.)"""
        return self.reply.startswith(b"-ERR") and b"[SYS/" not in self.reply and b"[IN-USE]" not in self.reply


@dataclass(slots=True)
class Guesser:
    """Guesses at `users` in turn with a new password each time, over one connection for each of `sources`."""

    port: int
    users: Sequence[str]
    sources: Sequence[str]
    answers: list[Answer] = field(default_factory=list)
    succeeded: int = 0
    """Guesses that were right, which none is."""
    started: float = 0.0
    """By time.monotonic()."""
    _names: Iterator[str] = field(default_factory=lambda: iter(()))

    async def run(self, seconds: float) -> None:
        """Guess for so long."""
        self.started = time.monotonic()
        self._names = itertools.cycle(self.users)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(self._from(source) for source in self.sources))

    def looked_at(self, since: float = 0.0, until: float = float("inf")) -> int:
        """How many passwords the server has looked at."""
        return sum(answer.looked_at for answer in self.answers if since <= answer.at < until)

    async def _from(self, source: str) -> None:
        while True:
            try:
                async with asyncio.timeout(_PATIENCE):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
                    try:
                        await self._over(reader, writer, source)
                    finally:
                        writer.close()
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(_PAUSE)

    async def _over(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: str) -> None:
        """As many guesses as one connection is good for."""
        await reader.readuntil(b"\r\n")
        while True:
            writer.write(f"USER {next(self._names)}\r\nPASS {canary('guess')}\r\n".encode())
            await reader.readuntil(b"\r\n")
            reply = await reader.readuntil(b"\r\n")
            self.answers.append(Answer(time.monotonic() - self.started, source, reply))
            if reply.startswith(b"+OK"):
                self.succeeded += 1
                return


async def rightful(
    port: int, user: str, password: str, source: str, *, seconds: float = _PATIENCE
) -> tuple[bytes, float]:
    """The user himself logs in from `source`: the reply to PASS, and how long that took from the connection on."""
    started = time.monotonic()
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        try:
            await reader.readuntil(b"\r\n")
            writer.write(f"USER {user}\r\nPASS {password}\r\n".encode())
            await reader.readuntil(b"\r\n")
            reply = await reader.readuntil(b"\r\n")
            took = time.monotonic() - started
            writer.write(b"QUIT\r\n")
            await reader.read()
            return reply, took
        finally:
            writer.close()


def clean_addresses(network: str = "127.77") -> Callable[[], str]:
    """Addresses of loopback that nobody has used: a new one at each call."""
    numbers = itertools.count(1)

    def fresh() -> str:
        number = next(numbers)
        return f"{network}.{number // 250}.{number % 250 + 1}"

    return fresh
