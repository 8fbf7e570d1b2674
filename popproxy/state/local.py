"""The shared state of one process: exact, at once, and lost when the process ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from popproxy.state.bounded import ExpiringMarks, LeakyCounters
from popproxy.state.shared import Leak, Lease, Level, Want

COUNTERS: Final = 32_768
"""Counters of each kind that are kept at most."""
MARKS: Final = 65_536
"""Marks of each kind that are kept at most."""


class LocalState:
    """See SharedState. `leaks` are the kinds of counters, `lifetimes` those of marks, in seconds."""

    def __init__(
        self, leaks: Mapping[str, Leak], lifetimes: Mapping[str, float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._counters = {kind: LeakyCounters(leak, COUNTERS, clock) for kind, leak in leaks.items()}
        self._marks = {kind: ExpiringMarks(seconds, MARKS, clock) for kind, seconds in lifetimes.items()}
        self._leased: dict[str, int] = {}  # by key; as many entries as there are sessions, at most

    def level(self, kind: str, key: str) -> Level | None:
        """See SharedState."""
        return self._counters[kind].level(key)

    def add(self, kind: str, key: str) -> None:
        """See SharedState."""
        self._counters[kind].add(key)

    def clear(self, kind: str, key: str) -> bool:
        """See SharedState."""
        return self._counters[kind].clear(key)

    def levels(self, kind: str) -> list[tuple[str, Level]]:
        """See SharedState."""
        return list(self._counters[kind].levels())

    def tracked(self, kind: str) -> int:
        """See SharedState."""
        return len(self._counters[kind])

    def mark(self, kind: str, key: str) -> None:
        """See SharedState."""
        self._marks[kind].set(key)

    async def marked(self, kind: str, key: str) -> bool:
        """See SharedState."""
        return key in self._marks[kind]

    async def acquire(self, wanted: Sequence[Want]) -> Lease | str:
        """See SharedState."""
        leased = self._leased
        for key, limit in wanted:
            if leased.get(key, 0) >= limit:
                return key
        for key, _ in wanted:
            leased[key] = leased.get(key, 0) + 1
        return _Lease(leased, [key for key, _ in wanted])


class _Lease:
    __slots__ = ("_keys", "_leased")

    def __init__(self, leased: dict[str, int], keys: list[str]) -> None:
        self._leased = leased
        self._keys = keys

    def release(self) -> None:
        keys, self._keys = self._keys, []
        for key in keys:
            count = self._leased[key] - 1
            if count:
                self._leased[key] = count
            else:
                del self._leased[key]
