"""The command ``trace``: what a user's sessions say, live, without secrets and bodies, for a limited time.

Every process that has sessions keeps what it hears for whoever takes it (``trace take``); the command itself takes,
again and again, wherever operators are answered. So it does not matter how many processes there are, nor when they
begin or end, and a trace that nobody takes from any more ends by itself.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Any

from popproxy.admin.commands import Commands, Executor
from popproxy.admin.frames import CommandFailed, Reason
from popproxy.auth.names import NameRefused
from popproxy.config.units import format_duration
from popproxy.session.session import Session
from popproxy.session.tracing import Trace, Tracing

LONGEST = 3600.0
"""Seconds that a trace may run."""
INTERVAL = 0.2
"""Seconds between two looks at what there is."""
FORGOTTEN = 15.0
"""Seconds after which a trace ends that nobody has taken from."""


def add_trace(commands: Commands, executor: Executor) -> None:
    """Add the command for operators; `executor` has ``trace take`` and ``trace drop``, of one process or of several."""

    async def trace(*, user: str, seconds: float | int = 600) -> AsyncGenerator[object, None]:
        if not 0 < seconds <= LONGEST:
            raise CommandFailed(Reason.BAD_ARGUMENTS, f"a trace may run for {format_duration(LONGEST)} at most")
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


def add_watches(
    commands: Commands, sessions: Collection[Session], tracing: Tracing, vet_name: Callable[[str], str]
) -> None:
    """Add what ``trace`` asks this process. `sessions` are its own; `vet_name` makes a user's name canonical."""
    watches: dict[str, _Watch] = {}

    def drop(key: str) -> None:
        watch = watches.pop(key, None)
        if watch is not None:
            watch.forgotten.cancel()
            tracing.end(watch.user, watch.trace)

    async def take(*, user: str, key: str) -> object:
        loop = asyncio.get_running_loop()
        try:
            name = vet_name(user)
        except NameRefused as refused:
            raise CommandFailed(Reason.BAD_ARGUMENTS, f"that is no user name ({refused.reason})") from None
        there = [session for session in sessions if session.user == name]
        watch = watches.get(key)
        if watch is None:
            watch = watches[key] = _Watch(name, tracing.begin(name, there))
        else:
            watch.forgotten.cancel()
        watch.forgotten = loop.call_later(FORGOTTEN, drop, key)
        return {"user": name, "sessions": [session.id for session in there], "events": watch.trace.take()}

    async def dropped(*, key: str) -> object:
        drop(key)
        return {}

    commands.add("trace take", take, hidden=True)
    commands.add("trace drop", dropped, hidden=True)


class _Watch:
    """One trace in this process."""

    forgotten: asyncio.TimerHandle

    def __init__(self, user: str, trace: Trace) -> None:
        self.user = user
        self.trace = trace
