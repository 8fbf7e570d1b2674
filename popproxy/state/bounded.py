"""Tables whose keys strangers choose, and which never grow beyond a fixed number of entries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain

from popproxy.state.shared import Leak, Level

_Entry = tuple[float, float]  # when it will have leaked away, and when it was last counted up


class LeakyCounters:
    """Counters by key, of one kind. All operations take constant time, except `levels`.

    Half of the table is for keys counted more than once. So a flood of new keys pushes out other new keys, and not what
    has been counted against the old ones; within each half, the key unused for longest goes first.
    """

    def __init__(self, leak: Leak, capacity: int, clock: Callable[[], float]) -> None:
        self._leak = leak
        self._capacity = capacity
        self._clock = clock
        self._once: OrderedDict[str, _Entry] = OrderedDict()  # oldest first
        self._again: OrderedDict[str, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def level(self, key: str) -> Level | None:
        """See SharedState."""
        entry = self._once.get(key) or self._again.get(key)
        return None if entry is None else self._level(entry, self._clock())

    def add(self, key: str) -> None:
        """Count one."""
        now = self._clock()
        self._sweep(now)
        entry = self._once.pop(key, None)
        if entry is None and key not in self._again:
            self._once[key] = (now + 1 / self._leak.per_second, now)
        else:
            empty_at, _ = entry or self._again[key]
            self._again[key] = (max(now, empty_at) + 1 / self._leak.per_second, now)
            self._again.move_to_end(key)
            if len(self._again) > self._capacity // 2:
                oldest, entry = self._again.popitem(last=False)
                self._once[oldest] = entry
        if len(self) > self._capacity:
            self._once.popitem(last=False)

    def clear(self, key: str) -> bool:
        """See SharedState."""
        return (self._once.pop(key, None) or self._again.pop(key, None)) is not None

    def levels(self) -> Iterator[tuple[str, Level]]:
        """All that are not forgotten."""
        now = self._clock()
        for key, entry in chain(self._once.items(), self._again.items()):
            level = self._level(entry, now)
            if level is not None:
                yield key, level

    def _level(self, entry: _Entry, now: float) -> Level | None:
        empty_at, latest = entry
        if self._over(entry, now):
            return None
        return Level(max(0.0, empty_at - now) * self._leak.per_second, now - latest)

    def _over(self, entry: _Entry, now: float) -> bool:
        return now - entry[1] > self._leak.keep and entry[0] <= now

    def _sweep(self, now: float) -> None:
        """Drop what is forgotten, more of it than can come in the same time."""
        for table in (self._once, self._again):
            for _ in range(2):
                key = next(iter(table), None)
                if key is None or not self._over(table[key], now):
                    break
                del table[key]


class ExpiringMarks:
    """Keys with a time to live. When the table is full, the one set longest ago goes."""

    def __init__(self, seconds: float, capacity: int, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._capacity = capacity
        self._clock = clock
        self._until: OrderedDict[str, float] = OrderedDict()  # soonest first

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, key: str) -> bool:
        return self._until.get(key, 0.0) > self._clock()

    def set(self, key: str) -> None:
        """Set it, or begin its time again if a tenth of that has passed: most logins only look."""
        until = self._clock() + self._seconds
        if self._until.get(key, 0.0) > until - self._seconds / 10:
            return
        self._until[key] = until
        self._until.move_to_end(key)
        if len(self._until) > self._capacity:
            self._until.popitem(last=False)
