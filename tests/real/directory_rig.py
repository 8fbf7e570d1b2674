"""Logins at a popproxy whose users a directory knows."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from tests.peers.canaries import canary
from tests.peers.process import wait_until
from tests.peers.proxy import Proxy, Record
from tests.peers.raw import RawClient

WRONG = b"-ERR [AUTH] authentication failed"
LATER = b"-ERR [SYS/TEMP] temporary problem, try again later"


@dataclass(frozen=True, slots=True)
class Tried:
    """How a login came out: the reply to PASS, the number of messages if it went well, seconds."""

    reply: bytes
    messages: int | None
    seconds: float


async def attempt(proxy: Proxy, user: str, password: str, listener: str = "pop3") -> Tried:
    """One login, and STAT if it is let in."""
    async with RawClient(proxy.port(listener), seconds=60) as client:
        started = time.monotonic()
        reply = await client.login(user, password)
        seconds = time.monotonic() - started
        messages = None
        if reply.startswith(b"+OK"):
            messages = int((await client.command("STAT")).split()[1])
        await client.command("QUIT")
        return Tried(reply, messages, seconds)


async def wrong(proxy: Proxy, user: str, listener: str = "pop3") -> bytes:
    """The reply to a wrong password."""
    return (await attempt(proxy, user, canary(), listener)).reply


async def reasons(proxy: Proxy, *expected: str | None) -> list[Record]:
    """Waits until the latest logins have come out like this (None: well); their audit records."""

    def latest() -> list[Record]:
        return proxy.audit("auth")[-len(expected) :]

    await asyncio.to_thread(
        wait_until, lambda: [r.get("event.reason") for r in latest()] == list(expected), f"logins with {expected}"
    )
    return latest()
