"""What several processes share, kept in the memory of one of them: exact, and gone when that one ends."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Final

from popproxy.state.bounded import ExpiringClaims, LeakyCounters
from popproxy.state.local import CLAIMS, COUNTERS
from popproxy.state.shared import Leak, Level
from popproxy.state.store import (
    GRANTED,
    Change,
    Heard,
    Hold,
    Known,
    Make,
    Mark,
    Marked,
    Operation,
    Take,
    Told,
    Unmake,
)

HISTORY: Final = 65_536
"""Changes that are kept for members to hear; who is further behind gets all counters anew."""
AT_ONCE: Final = 2000
"""Changes that are heard in one exchange."""
HELD: Final = 262_144
"""Leases and notes that one member may have; it has a few for each session. More are neither counted nor kept."""
BACKLOG: Final = 1 << 20
"""Changes that a member may have to hear; who asks for them again and again gets all counters anew."""
MARKS: Final = 262_144
"""Marks that are kept, of all kinds together."""


class MemoryStore:
    """Shared by its members. Not thread-safe; nothing blocks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.secret = secrets.token_bytes(32)
        self.members: list[Member] = []
        self.leases: dict[str, dict[Member, int]] = {}
        self.counters: dict[str, LeakyCounters] = {}
        self.history: deque[tuple[float, Member, Change]] = deque(maxlen=HISTORY)
        self.length = 0  # of all history, with what is not kept
        self.marks = ExpiringClaims(MARKS, clock)
        self.claims = ExpiringClaims(CLAIMS, clock)
        self.notes: dict[str, dict[str, str]] = {}
        self.edition = 0  # of the notes
        self.blank = True  # nobody has told it anything yet

    def join(self, leaks: Mapping[str, Leak]) -> Member:
        """A new member. Its configuration decides from now on how counters leak."""
        for kind, leak in leaks.items():
            counters = self.counters.get(kind)
            if counters is None:
                self.counters[kind] = LeakyCounters(leak, COUNTERS, self.clock)
            else:
                counters.change(leak)
        member = Member(self)
        self.members.append(member)
        return member


class Member:
    """One process's place in a MemoryStore."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.held: set[str] = set()
        """The leases that it has a part in."""
        self.backlog: list[tuple[float, Change]] = []
        """What it has yet to hear, and how old that was when it was put here."""
        self.told = 0
        """The number of what it has told last."""
        self._edition = -1

    def leave(self) -> None:
        """It has ended: what it held is free."""
        store = self._store
        if self not in store.members:
            return
        store.members.remove(self)
        for key in self.held:
            holders = store.leases[key]
            del holders[self]
            if not holders:
                del store.leases[key]
        self.held.clear()

    def execute(self, operations: Sequence[Operation]) -> list[int]:
        """See Store."""
        return [self._execute(operation) for operation in operations]

    def _execute(self, operation: Operation) -> int:
        store = self._store
        match operation:
            case Take(owner, wanted):
                return self._take(owner, wanted)
            case Hold(owner, what, count):
                self._hold(f"{owner}\0{what}", count)
                return 0
            case Mark(key, seconds):
                store.marks.unclaim(key)
                store.marks.claim(key, seconds)
                return 0
            case Marked(key):
                return int(key in store.marks)
            case Make(key, seconds):
                return int(store.claims.claim(key, seconds))
            case Unmake(key):
                store.claims.unclaim(key)
                return 0

    def _take(self, owner: str, wanted: Sequence[tuple[str, int, int]]) -> int:
        leases = self._store.leases
        for number, (what, limit, mine) in enumerate(wanted):
            others = sum(count for member, count in leases.get(f"{owner}\0{what}", {}).items() if member is not self)
            if others + mine >= limit:
                return number
        for what, _, mine in wanted:
            self._hold(f"{owner}\0{what}", mine + 1)
        return GRANTED

    def _hold(self, key: str, count: int) -> None:
        leases = self._store.leases
        if count > 0:
            if key not in self.held and len(self.held) >= HELD:
                return
            leases.setdefault(key, {})[self] = count
            self.held.add(key)
        elif key in self.held:
            self.held.discard(key)
            holders = leases[key]
            del holders[self]
            if not holders:
                del leases[key]

    def exchange(self, told: Told) -> Heard:
        """See Store."""
        store = self._store
        wanted = store.blank and told.number > 1
        store.blank = False
        if told.number != self.told:
            self.told = told.number
            self._tell(told)
        if not wanted:
            self._listen(told.cursor)
        changes, self.backlog = self.backlog[:AT_ONCE], self.backlog[AT_ONCE:]
        notes = None
        if self._edition != store.edition and not wanted:
            self._edition, notes = store.edition, store.notes
        return Heard(
            cursor=str(store.length), members=len(store.members), changes=changes, notes=notes,
            more=bool(self.backlog), wanted=wanted,
        )  # fmt: skip

    def _tell(self, told: Told) -> None:
        store, now = self._store, self._store.clock()
        for change in told.changes:
            counters = store.counters.get(change.kind)
            if counters is None:
                continue
            if isinstance(change, Known):
                counters.raise_to(change.key, Level(change.value, change.age))
            elif change.amount:
                counters.add(change.key, change.amount)
            else:
                counters.clear(change.key)
            store.history.append((now, self, change))
            store.length += 1
        for kind, key, text in told.notes:
            store.edition += 1
            if text is None:
                store.notes.get(kind, {}).pop(key, None)
            elif sum(map(len, store.notes.values())) < HELD:
                store.notes.setdefault(kind, {})[key] = text

    def _listen(self, cursor: str) -> None:
        """Put what it has not heard into its backlog."""
        store, now = self._store, self._store.clock()
        heard = int(cursor) if cursor.isdecimal() else -1
        missed = store.length - heard
        if heard < 0 or missed < 0 or missed > len(store.history) or len(self.backlog) > BACKLOG:
            self.backlog = [
                (0.0, Known(kind, key, level.value, level.age))
                for kind, counters in store.counters.items()
                for key, level in counters.levels()
            ]
            return
        news = reversed(tuple(islice(reversed(store.history), missed)))
        self.backlog += [(now - when, change) for when, member, change in news if member is not self]
