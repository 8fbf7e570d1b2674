"""What ``trace`` asks each process that has sessions: ``trace take`` and ``trace drop``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from popproxy.admin.commands import Commands
from popproxy.admin.frames import CommandFailed, Reason
from popproxy.auth.names import NameRefused
from popproxy.session.session import Session
from popproxy.session.tracing import Trace, Tracing

FORGOTTEN = 15.0
"""Seconds after which a trace ends that nobody has taken from."""
MOST = 100
"""Traces at a time: another worker may ask for them, and strangers may have taken that over."""


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
            if len(watches) >= MOST:
                raise CommandFailed(Reason.REFUSED, f"there are {MOST} traces already; wait, or end some")
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
