"""How processes have ended that are no workers, or not known as such yet: a worker may end before it says who it is.

The supervisor buries whatever its descendants leave behind, and numbers of processes are used again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

REMEMBERED = 100
"""At most; the latest."""
AGE = 60.0
"""Seconds; a worker says its number within moments, and later on the number may be another one's."""


class Strangers:
    """Those of one supervisor. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended: dict[int, tuple[float, int]] = {}

    def ended(self, pid: int, status: int) -> None:
        """Remember it."""
        self._ended.pop(pid, None)
        self._ended[pid] = self._clock(), status
        if len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]

    def status_of(self, pid: int) -> int | None:
        """How that process has ended; None if it runs."""
        when, status = self._ended.pop(pid, (0.0, None))
        return status if self._clock() - when < AGE else None

    def hand_over(self) -> list[list[int]]:
        """For another program in this process, good for JSON."""
        return [[pid, status] for pid, (_, status) in self._ended.items()]

    def take_over(self, told: Sequence[Sequence[int]]) -> None:
        """Remember what `hand_over` has told."""
        for pid, status in told:
            self.ended(pid, status)
