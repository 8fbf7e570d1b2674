"""Deadlines of all sessions, kept by one timer.

A session sets a plain number, as often as it likes, and pays nothing for it; twice a second one pass compares them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from popproxy.observe.logs import get_logger

log = get_logger("net")

INTERVAL = 0.5
"""Seconds between two passes: how late a deadline may be noticed."""


class Timed(Protocol):
    """Something with a deadline. `deadline` is in loop time; infinity for none."""

    deadline: float

    def deadline_passed(self) -> None:
        """Called once per pass while the deadline lies behind."""
        ...


class Deadlines:
    """The timer. `now` is the loop time of the last pass: good enough for setting deadlines, and free.

    `late` is told by how many seconds each pass came late: what a busy loop adds to everything.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, late: Callable[[float], None]) -> None:
        self.now = loop.time()
        self._late = late
        self._loop = loop
        self._members: set[Timed] = set()
        self._handle: asyncio.TimerHandle | None = loop.call_later(INTERVAL, self._pass)

    def exact(self) -> float:
        """The loop's time at this moment, in seconds."""
        return self._loop.time()

    def add(self, member: Timed) -> None:
        """Begin to watch."""
        self._members.add(member)

    def discard(self, member: Timed) -> None:
        """Watch no more."""
        self._members.discard(member)

    def close(self) -> None:
        """Stop."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _pass(self) -> None:
        now = self._loop.time()
        self._late(max(0.0, now - self.now - INTERVAL))
        self.now = now
        self._handle = self._loop.call_later(INTERVAL, self._pass)
        for member in [member for member in self._members if member.deadline < now]:
            try:
                member.deadline_passed()
            except Exception:  # a bug of ours: not the other sessions' business
                log.exception("a deadline's handler failed")
