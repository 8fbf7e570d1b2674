"""The shared state of one process: exact, at once, and lost when the process ends."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from popproxy.state.bounded import ExpiringClaims, ExpiringMarks, LeakyCounters
from popproxy.state.shared import Claim, Leak, Lease, Level, SharingStatus, Want

COUNTERS: Final = 32_768
"""Counters of each kind that are kept at most."""
MARKS: Final = 65_536
"""Marks of each kind that are kept at most."""
CLAIMS: Final = 262_144
"""Claims that are kept at most: those of Kerberos for ten minutes, of more than 400 logins a second."""


class LocalState:
    """See SharedState. `leaks` are the kinds of counters, `lifetimes` those of marks, in seconds."""

    def __init__(
        self, leaks: Mapping[str, Leak], lifetimes: Mapping[str, float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._counters = {kind: LeakyCounters(leak, COUNTERS, clock) for kind, leak in leaks.items()}
        self._marks = {kind: ExpiringMarks(seconds, MARKS, clock) for kind, seconds in lifetimes.items()}
        self._leased: dict[str, int] = {}  # by owner and what; at most twice as many entries as there are sessions
        self._claims = ExpiringClaims(CLAIMS, clock)
        self._notes: dict[str, dict[str, str]] = {}  # by kind
        self.secret = secrets.token_bytes(32)

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

    async def acquire(self, owner: str, wanted: Sequence[Want]) -> Lease | str:
        """See SharedState."""
        leased = self._leased
        for what, limit in wanted:
            if leased.get(f"{owner}\0{what}", 0) >= limit:
                return what
        keys = [f"{owner}\0{what}" for what, _ in wanted]
        for key in keys:
            leased[key] = leased.get(key, 0) + 1
        return _Lease(leased, keys)

    async def claim(self, kind: str, key: str, seconds: float) -> Claim:
        """See SharedState."""
        return Claim.FIRST if self._claims.claim(f"{kind}\0{key}", seconds) else Claim.REPEATED

    def unclaim(self, kind: str, key: str) -> None:
        """See SharedState."""
        self._claims.unclaim(f"{kind}\0{key}")

    def note(self, kind: str, key: str, text: str | None) -> None:
        """See SharedState."""
        notes = self._notes.setdefault(kind, {})
        if text is None:
            notes.pop(key, None)
        else:
            notes[key] = text

    def notes(self, kind: str) -> Mapping[str, str]:
        """See SharedState."""
        return self._notes.get(kind, {})

    def status(self) -> SharingStatus:
        """See SharedState."""
        return SharingStatus("memory", up=True, members=1)


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
