"""The command ``trace``: what a user's sessions say, live, without secrets and bodies, for a limited time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection

from popproxy.admin.commands import Commands
from popproxy.admin.frames import CommandFailed, Reason
from popproxy.auth.names import NameRefused
from popproxy.config.units import format_duration
from popproxy.session.session import Session
from popproxy.session.tracing import Tracing

LONGEST = 3600.0
"""Seconds that a trace may run."""


def add_trace(
    commands: Commands, sessions: Collection[Session], tracing: Tracing, vet_name: Callable[[str], str]
) -> None:
    """Add the command. `sessions` are those of the process at any time; `vet_name` makes a user's name canonical."""

    async def trace(*, user: str, seconds: float | int = 600) -> AsyncGenerator[object, None]:
        try:
            name = vet_name(user)
        except NameRefused as refused:
            raise CommandFailed(Reason.BAD_ARGUMENTS, f"that is no user name ({refused.reason})") from None
        if not 0 < seconds <= LONGEST:
            raise CommandFailed(Reason.BAD_ARGUMENTS, f"a trace may run for {format_duration(LONGEST)} at most")
        there = [session for session in sessions if session.user == name]
        watched = tracing.begin(name, there)
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            yield {"kind": "begin", "user": name, "seconds": seconds, "sessions": [session.id for session in there]}
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        events = await watched.take()
                except TimeoutError:
                    return
                for event in events:
                    yield event
        finally:
            tracing.end(name, watched)

    commands.add("trace", trace)
