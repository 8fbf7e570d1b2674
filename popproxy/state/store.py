"""Where state is kept that several processes share, and the operations on it: what memory, a socket or Redis carry out.

MirroredState makes a SharedState of such a store. Its operations bear repetition: a lease is told as the number that
a member has now, not as one more, so that nothing is lost or counted twice when a connection breaks and comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from popproxy.errors import PopproxyError
from popproxy.state.shared import Leak

GRANTED: Final = -1
"""The answer to Take if all is granted; otherwise the index of the first that is not."""


class StoreAway(PopproxyError):
    """The store does not answer. `reason` is one of the closed set of the metrics."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(what)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Take:
    """Leases for one more session of `owner`: what of, how many at most, and how many this member has already."""

    owner: str
    wanted: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """How many of `what` this member has of `owner` now."""

    owner: str
    what: str
    count: int


@dataclass(frozen=True, slots=True)
class Mark:
    """Set a mark for so many seconds. Answer: 0."""

    key: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Marked:
    """Is it set? Answer: 1 or 0."""

    key: str


@dataclass(frozen=True, slots=True)
class Make:
    """Make a claim. Answer: 1 if it is the first."""

    key: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Unmake:
    """Take a claim back. Answer: 0."""

    key: str


Operation = Take | Hold | Mark | Marked | Make | Unmake


@dataclass(frozen=True, slots=True)
class Counted:
    """Somebody has counted `amount`; 0 of it: he has cleared the counter."""

    kind: str
    key: str
    amount: int


@dataclass(frozen=True, slots=True)
class Known:
    """Somebody knows of a counter that it is at `value`, and was last counted up `age` seconds ago."""

    kind: str
    key: str
    value: float
    age: float


Change = Counted | Known
Note = tuple[str, str, str | None]
"""Kind, key and text of a note; None takes it away."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a member has to tell: its changes of counters and notes since it last did.

    `number` counts them, so that one that comes again is told from the next. `cursor` is how far it knows what others
    have told, empty at first.
    """

    number: int
    cursor: str
    changes: Sequence[Change] = ()
    notes: Sequence[Note] = ()


@dataclass(frozen=True, slots=True)
class Heard:
    """What others have told since, each change with its age in seconds, and the state of things.

    `members` are the processes that share the store. `notes` are all there are, or None if they are as they were.
    `more` is set if there is more to be heard at once. `forgotten` is set if the store does not know any more what this
    member has told before: its leases, at least. `wanted` is set if it should tell all that it knows.
    """

    cursor: str
    members: int
    changes: Sequence[tuple[float, Change]] = ()
    notes: Mapping[str, Mapping[str, str]] | None = None
    more: bool = False
    forgotten: bool = False
    wanted: bool = False


@dataclass(slots=True)
class Neighbours:
    """What a store tells unasked. `alone` is called with whether nobody else shares it: then this process decides."""

    alone: Callable[[bool], None] = field(default=lambda _alone: None)


class Store(Protocol):
    """One member's way to what is shared. Every method may raise StoreAway."""

    neighbours: Neighbours

    @property
    def secret(self) -> bytes | None:
        """See SharedState.secret; None while it is not known."""
        ...

    async def open(self, leaks: Mapping[str, Leak]) -> None:
        """Connect, for the first time or again."""
        ...

    async def execute(self, operations: Sequence[Operation]) -> list[int]:
        """Carry them out, in this order as far as an owner or a key is the same. Their answers."""
        ...

    async def exchange(self, told: Told) -> Heard:
        """Tell, hear, and show that this member lives."""
        ...

    async def close(self) -> None:
        """Leave, so that what is held is free at once. Not an error the second time; raises nothing."""
        ...
