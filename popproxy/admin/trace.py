"""The command ``trace``: what a user's sessions say, live, without secrets and bodies, for a limited time.

Every process that has sessions keeps what it hears for whoever takes it (``trace take``); the command itself takes,
again and again, wherever operators are answered. So it does not matter how many processes there are, nor when they
begin or end, and a trace that nobody takes from any more ends by itself.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from popproxy.admin.commands import Commands, Executor
from popproxy.admin.frames import CommandFailed, Reason

LONGEST = 3600.0
"""Seconds that a trace may run."""
INTERVAL = 0.2
"""Seconds between two looks at what there is."""


def add_trace(commands: Commands, executor: Executor) -> None:
    """Add the command for operators; `executor` has ``trace take`` and ``trace drop``, of one process or of several."""

    async def trace(*, user: str, seconds: float | int = 600) -> AsyncGenerator[object, None]:
        if not 0 < seconds <= LONGEST:
            raise CommandFailed(Reason.BAD_ARGUMENTS, "a trace may run for 1h at most")
        key = {"user": user, "key": secrets.token_hex(8)}
        deadline = time.monotonic() + seconds
        try:
            taken: Any = await executor.execute("trace take", key)
            yield {"kind": "begin", "user": taken["user"], "seconds": seconds, "sessions": taken["sessions"]}
            while True:
                for event in sorted(taken["events"], key=lambda event: event["at"]):
                    yield event
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                await asyncio.sleep(min(INTERVAL, left))
                taken = await executor.execute("trace take", key)
        finally:
            await executor.execute("trace drop", {"key": key["key"]})

    commands.add("trace", trace)
