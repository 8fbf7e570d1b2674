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

    def add(self, key: str, amount: float = 1.0, age: float = 0.0) -> None:
        """Count `amount`, as if `age` seconds ago."""
        now = self._clock()
        self._sweep(now)
        when = now - age
        entry = self._once.pop(key, None)
        if entry is None and key not in self._again:
            self._put(key, (when + amount / self._leak.per_second, when), again=amount > 1)
        else:
            empty_at, latest = entry or self._again[key]
            self._put(key, (max(when, empty_at) + amount / self._leak.per_second, max(when, latest)), again=True)

    @property
    def leak(self) -> Leak:
        """How it leaks at present."""
        return self._leak

    def raise_to(self, key: str, level: Level) -> None:
        """Let the counter show `level` at least: what somebody else has counted, who may know more."""
        now = self._clock()
        empty_at, latest = self._once.pop(key, (0.0, 0.0)) if key in self._once else self._again.get(key, (0.0, 0.0))
        told = (now + level.value / self._leak.per_second, now - level.age)
        self._put(key, (max(empty_at, told[0]), max(latest, told[1])), again=level.value > 1)

    def change(self, leak: Leak) -> None:
        """From now on it leaks otherwise; what is counted stays."""
        now, before, self._leak = self._clock(), self._leak.per_second, leak
        for table in (self._once, self._again):
            for key, (empty_at, latest) in table.items():
                table[key] = (now + (empty_at - now) * before / leak.per_second, latest)

    def _put(self, key: str, entry: _Entry, *, again: bool) -> None:
        if not again and key not in self._again:
            self._once[key] = entry
        else:
            self._again[key] = entry
            self._again.move_to_end(key)
            if len(self._again) > self._capacity // 2:
                oldest, pushed_out = self._again.popitem(last=False)
                self._once[oldest] = pushed_out
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

    def set(self, key: str) -> bool:
        """Set it, or begin its time again if a tenth of that has passed: most logins only look. Was there any to do?"""
        until = self._clock() + self._seconds
        if self._until.get(key, 0.0) > until - self._seconds / 10:
            return False
        self._until[key] = until
        self._until.move_to_end(key)
        if len(self._until) > self._capacity:
            self._until.popitem(last=False)
        return True


class ExpiringClaims:
    """Keys that can be claimed once in a time. When the table is full, the one claimed longest ago goes."""

    def __init__(self, capacity: int, clock: Callable[[], float]) -> None:
        self._capacity = capacity
        self._clock = clock
        self._until: OrderedDict[str, float] = OrderedDict()  # in the order they were claimed

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, key: str) -> bool:
        return self._until.get(key, 0.0) > self._clock()

    def claim(self, key: str, seconds: float) -> bool:
        """Is it the first?"""
        now = self._clock()
        for _ in range(2):  # more than can come in the same time
            oldest = next(iter(self._until), None)
            if oldest is None or self._until[oldest] > now:
                break
            del self._until[oldest]
        if self._until.get(key, 0.0) > now:
            return False
        self._until[key] = now + seconds
        self._until.move_to_end(key)
        if len(self._until) > self._capacity:
            self._until.popitem(last=False)
        return True

    def left(self) -> list[tuple[str, float]]:
        """Keys that are claimed, and for how many seconds still."""
        now = self._clock()
        return [(key, until - now) for key, until in self._until.items() if until > now]

    def unclaim(self, key: str) -> None:
        """Forget it."""
        self._until.pop(key, None)
