"""What a member has counted, noted and done, and the store is still to be told."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from popproxy.state.bounded import LeakyCounters
from popproxy.state.store import Change, Counted, Known, Make, Mark, Told

MOST: Final = 32_768
"""Counters, and operations, that are remembered while nobody can be told; the oldest go first."""
AT_ONCE: Final = 1000
"""Changes that are told in one exchange."""
_KNOWN: Final = 20_000
"""Counters that are told to a store that has lost everything; those counted up last."""


class Outbox:
    """Counts of the same counter are told as one. What has been told stays until the store has confirmed it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counted: OrderedDict[tuple[str, str], tuple[bool, int]] = OrderedDict()  # cleared first? how many since?
        self._known: list[Known] = []
        self._notes: dict[tuple[str, str], str | None] = {}
        self._under_way: Told | None = None
        self._number = 0
        self._later: OrderedDict[str, tuple[Mark | Make, float]] = OrderedDict()  # until when

    def add(self, kind: str, key: str) -> None:
        """Something was counted."""
        cleared, amount = self._counted.get((kind, key), (False, 0))
        self._put(kind, key, cleared, amount + 1)

    def clear(self, kind: str, key: str) -> None:
        """A counter was cleared."""
        self._put(kind, key, True, 0)

    def note(self, kind: str, key: str, text: str | None) -> None:
        """A note was written or taken away."""
        self._notes[(kind, key)] = text

    def put_notes(self, notes: dict[str, dict[str, str]]) -> None:
        """Write those notes that nobody has been told of into all that there are."""
        under_way = () if self._under_way is None else self._under_way.notes
        for kind, key, text in (*under_way, *((*place, text) for place, text in self._notes.items())):
            if text is None:
                notes.get(kind, {}).pop(key, None)
            else:
                notes.setdefault(kind, {})[key] = text

    def later(self, operation: Mark | Make) -> None:
        """Done while the store was away; it is to be told when it is back."""
        self._later[operation.key] = operation, self._clock() + operation.seconds
        if len(self._later) > MOST:
            self._later.popitem(last=False)

    def not_later(self, key: str) -> None:
        """It was not done after all."""
        self._later.pop(key, None)

    def take_later(self) -> list[Mark | Make]:
        """All that was done and still counts, each with the time that it has left."""
        now = self._clock()
        later, self._later = self._later, OrderedDict()
        return [type(what)(what.key, until - now) for what, until in later.values() if until - now >= 1]

    def know(self, counters: Mapping[str, LeakyCounters], notes: Mapping[str, Mapping[str, str]]) -> None:
        """The store has lost everything: tell it all that is known."""
        known = (
            Known(kind, key, level.value, level.age)
            for kind, table in counters.items()
            for key, level in table.levels()
        )
        self._known = heapq.nsmallest(_KNOWN, known, key=lambda one: one.age)
        for kind, texts in notes.items():
            for key, text in texts.items():
                self._notes.setdefault((kind, key), text)

    @property
    def crowded(self) -> bool:
        """Is there more than fits into the next exchange?"""
        return bool(self._known) or len(self._counted) > AT_ONCE

    def told(self, cursor: str) -> Told:
        """The next exchange: what the last one said, if nobody knows whether that was heard."""
        if self._under_way is None:
            changes: list[Change] = []
            while self._counted and len(changes) < AT_ONCE:
                (kind, key), (cleared, amount) = self._counted.popitem(last=False)
                changes += [Counted(kind, key, 0)] * cleared + [Counted(kind, key, amount)] * bool(amount)
            # After what was counted, which it includes: so those that know the one hear of the other once.
            room = max(0, AT_ONCE - len(changes))
            changes += self._known[:room]
            del self._known[:room]
            notes = tuple((*place, text) for place, text in self._notes.items())
            self._notes.clear()
            self._number += 1
            self._under_way = Told(self._number, cursor, tuple(changes), notes)
        return self._under_way

    def has_told(self, told: Told) -> None:
        """It has been heard."""
        if told is self._under_way:
            self._under_way = None

    def _put(self, kind: str, key: str, cleared: bool, amount: int) -> None:
        self._counted[(kind, key)] = cleared, amount
        if len(self._counted) > MOST:
            self._counted.popitem(last=False)
