"""What sessions share to keep abuse in check, wherever it is kept: in this process, by the workers of a host, in Redis.

Three things, each as exact and as fast as its use needs:

* **Counters** that leak: failures by address, by user. They are asked at every login, so `level` answers at once, from
  memory. What others count may arrive up to a second later; what this process counts is there immediately. A store that
  is away therefore never delays a login and never means "no limit": what is here already goes on counting.
* **Marks** that expire: an address from which a user has logged in, a wrong password seen before. They are set at once
  and asked rarely (only when a counter speaks against somebody), so that asking may take a round trip.
* **Leases**: sessions, counted against limits that hold everywhere. Taking some is one decision for all of them, which
  may take a round trip; giving them back is left to the store, because it happens where nobody can wait.

Every implementation keeps a bounded number of counters and marks: strangers choose their keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Leak:
    """A kind of counter: `per_second` of what was counted is forgotten; one unused for `keep` seconds is dropped."""

    per_second: float
    keep: float


@dataclass(frozen=True, slots=True)
class Level:
    """A counter now: what has been counted and not yet leaked away, and how many seconds ago it was last counted up."""

    value: float
    age: float


Want = tuple[str, int]
"""A lease to be taken: its key, and how many there may be of that key at a time."""


class Lease(Protocol):
    """What was taken by `SharedState.acquire`."""

    def release(self) -> None:
        """Give all of it back. Not an error the second time."""
        ...


class SharedState(Protocol):
    """Counters, marks and leases. Kinds are named when it is made; keys are any text. Nothing here raises."""

    def level(self, kind: str, key: str) -> Level | None:
        """The counter, or None if nothing was counted lately."""
        ...

    def add(self, kind: str, key: str) -> None:
        """Count one."""
        ...

    def clear(self, kind: str, key: str) -> bool:
        """Forget a counter; was there one?"""
        ...

    def levels(self, kind: str) -> list[tuple[str, Level]]:
        """All counters of a kind, for operators: takes a while."""
        ...

    def tracked(self, kind: str) -> int:
        """How many counters of a kind are kept. Any thread may ask."""
        ...

    def mark(self, kind: str, key: str) -> None:
        """Set a mark, or begin its time again."""
        ...

    async def marked(self, kind: str, key: str) -> bool:
        """Is the mark set, and not expired?"""
        ...

    async def acquire(self, wanted: Sequence[Want]) -> Lease | str:
        """Take all of `wanted`, or nothing: then the first key whose limit is reached."""
        ...
