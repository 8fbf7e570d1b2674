"""Deadlines of all sessions, kept by one timer.

A session sets a plain number, as often as it likes, and pays nothing for it; twice a second one pass compares them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Protocol

from popproxy.observe.logs import get_logger

log = get_logger("net")

TICK = 0.1
"""Seconds between two looks at the clock, which tell how late the loop is: often enough for a p99 of half a minute."""
TICKS_OF_A_PASS = 5
"""Twice a second: how late a deadline may be noticed."""
TICKS_OF_A_SWEEP = 150
"""Seconds between two looks at how fast things get on: 15."""


class Timed(Protocol):
    """Something with a deadline. `deadline` is in loop time; infinity for none."""

    deadline: float

    def deadline_passed(self) -> None:
        """Called once per pass while the deadline lies behind."""
        ...

    def check_pace(self) -> None:
        """Called now and then: end what gets on, but too slowly for a deadline that each octet puts off."""
        ...

    def failed(self) -> None:
        """One of those two has raised: a bug, logged. End what it was about; it is not called again for it."""
        ...


class Deadlines:
    """The timer. `now` is the loop time of the last tick: good enough for setting deadlines, and free.

    `late` is told by how many seconds each tick came late: what a busy loop adds to everything.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, late: Callable[[float], None]) -> None:
        self.now = loop.time()
        self._late = late
        self._loop = loop
        self._members: set[Timed] = set()
        self._ticks = 0
        self._handle: asyncio.TimerHandle | None = loop.call_later(TICK, self._tick)

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

    def _tick(self) -> None:
        now = self._loop.time()
        self._late(max(0.0, now - self.now - TICK))
        self.now = now
        self._handle = self._loop.call_later(TICK, self._tick)
        self._ticks += 1
        if self._ticks % TICKS_OF_A_PASS == 0:
            self._pass(now)
        if self._ticks % TICKS_OF_A_SWEEP == 0:
            self._sweep()

    def _pass(self, now: float) -> None:
        for member in [member for member in self._members if member.deadline < now]:
            try:
                member.deadline_passed()
            except Exception:
                self._failed(member)

    def _sweep(self) -> None:
        for member in list(self._members):
            try:
                member.check_pace()
            except Exception:
                self._failed(member)

    def _failed(self, member: Timed) -> None:
        """A bug of ours is being handled: not the other sessions' business."""
        log.exception("a deadline's handler failed")
        member.deadline = inf
        try:
            member.failed()
        except Exception:
            log.exception("it failed again while it was ended")
