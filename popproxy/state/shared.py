"""What sessions share to keep abuse in check, wherever it is kept: in this process, by the workers of a host, in Redis.

Each thing is as exact and as fast as its use needs:

* **Counters** that leak: failures by address, by user. They are asked at every login, so `level` answers at once, from
  memory. What others count may arrive up to a second later; what this process counts is there immediately. A store that
  is away therefore never delays a login and never means "no limit": what is here already goes on counting.
* **Marks** that expire: an address from which a user has logged in, a wrong password seen before. They are set at once
  and asked rarely (only when a counter speaks against somebody), so that asking may take a round trip.
* **Leases**: sessions, counted against limits that hold everywhere. Taking some is one decision for all of them, which
  may take a round trip; giving them back is left to the store, because it happens where nobody can wait. They end with
  the process that has taken them, however it ends. While the store is away each process keeps to its share.
* **Claims**: what may happen once in a time, like the use of a Kerberos authenticator, or the login of a user who is to
  wait between two. A round trip; while the store is away the answer says that it is only this process's.
* **Notes**: what operators have ordered, and all are to know: read from memory, known everywhere within a second.

Every implementation keeps a bounded number of counters, marks and claims: strangers choose their keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, Protocol


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
"""A lease to be taken: what of, and how many there may be of that at a time."""


class Claim(Enum):
    """What came of a claim."""

    FIRST = auto()  # nobody has made it in its time
    REPEATED = auto()  # somebody has
    FIRST_HERE = auto()  # nobody in this process has; what others did is not known just now


@dataclass(frozen=True, slots=True)
class SharingStatus:
    """For operators: with whom it is shared, and whether that works.

    `members` counts the processes that share it, this one included, as far as is known. `away` is for how many seconds
    the store has not answered, 0 if it does.
    """

    kind: Literal["memory", "workers", "redis"]
    up: bool
    members: int
    away: float = 0.0


class Lease(Protocol):
    """What was taken by `SharedState.acquire`."""

    def release(self) -> None:
        """Give all of it back. Not an error the second time."""
        ...


class SharedState(Protocol):
    """Counters, marks, leases, claims, notes.

    Kinds of counters and marks are named when it is made; keys are any text. Nothing here raises.
    """

    @property
    def secret(self) -> bytes:
        """32 octets that those who share this have in common and nobody else knows: for digests of what is secret."""
        ...

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

    async def acquire(self, owner: str, wanted: Sequence[Want]) -> Lease | str:
        """Take all of `wanted` for `owner`, or nothing: then the first whose limit is reached."""
        ...

    async def claim(self, kind: str, key: str, seconds: float) -> Claim:
        """Do what may be done once in `seconds`; the time is that of the first."""
        ...

    def unclaim(self, kind: str, key: str) -> None:
        """It was not done after all."""
        ...

    def note(self, kind: str, key: str, text: str | None) -> None:
        """Write a note, for all to read; None takes it away."""
        ...

    def notes(self, kind: str) -> Mapping[str, str]:
        """The notes of a kind, by key. Not to be changed."""
        ...

    def status(self) -> SharingStatus:
        """With whom all this is shared just now."""
        ...
