"""How fast the slow ones get on: a client that does not keep up, a reply that comes in drops."""

from __future__ import annotations

from typing import Final

SLOWEST: Final = 1024 / 30
"""Octets a second that a reply must get on at, on average, once it has taken longer than the stall timeout."""


class Pace:
    """Of one session. All times are in seconds, those of now by a clock that never goes back."""

    __slots__ = ("_begun", "_since", "_unread")

    def __init__(self) -> None:
        self._unread = 0  # octets on their way to a client that does not keep up, when it was last seen to read
        self._since = 0.0  # when that was
        self._begun: tuple[float, int] | None = None  # when a reply was first seen under way, how far all was then

    def keeps_up(self) -> None:
        """The client has all that there is."""
        self._unread = 0

    def falls_behind(self, unread: int, now: float) -> None:
        """So many octets are on their way to the client, who could not take them at once."""
        self._unread, self._since = unread, now

    def stuck(self, unread: int, now: float, stall: float) -> bool:
        """Has the client read nothing for `stall` seconds? So many octets are on their way to it now."""
        if not self._unread or unread < self._unread:  # slow, but it reads
            self._unread, self._since = unread, now
            return False
        return now - self._since >= stall

    def between_replies(self) -> None:
        """No reply is under way."""
        self._begun = None

    def too_slow(self, moved: int, now: float, stall: float) -> bool:
        """Does the reply under way get on too slowly to go on? `moved` octets have arrived in this session by now."""
        if self._begun is None:
            self._begun = now, moved
            return False
        since, before = self._begun
        return moved - before < (now - since - stall) * SLOWEST


def often(stall: float) -> float:
    """Seconds between two looks at a client that does not keep up."""
    return min(stall, max(0.25, stall / 60))
