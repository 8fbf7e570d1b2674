"""Is a server to be tried first, or only when nothing else is left? A circuit breaker, without a clock of its own.

    CLOSED     logins go there                              --(failures in a row)-->        OPEN
    OPEN       down; a probe of ours asks again and again   --(a probe that succeeds)-->    ON_TRIAL
    ON_TRIAL   one login at a time goes there               --(a login that gets through)-> CLOSED
                                                            --(any failure)-->              OPEN, for twice as long

No user waits for a server that is known to be down: what finds out whether it is back is a probe. And because a server
can greet nicely and fail at each login, a probe alone does not close the breaker. Times are seconds of any clock.
"""

from __future__ import annotations

from enum import Enum, auto
from math import inf

LONGEST = 12.0
"""How many times the first wait the waits between two probes of a server that stays down can become."""


class Circuit(Enum):
    """Where a breaker stands."""

    CLOSED = auto()
    OPEN = auto()
    ON_TRIAL = auto()


class Breaker:
    """The breaker of one server: opens after `failures` in a row, and wants a probe `retry` seconds later."""

    __slots__ = ("_failures", "_in_a_row", "_retry", "_wait", "calm", "circuit", "closed_at", "probe_at")

    def __init__(self, failures: int, retry: float) -> None:
        self.circuit = Circuit.CLOSED
        self.calm = True  # closed, and the latest login got through: one more that does changes nothing
        self.closed_at = -inf  # when it was closed again
        self.probe_at = inf  # when it wants to be probed
        self._failures = failures
        self._retry = self._wait = retry
        self._in_a_row = 0

    def failed(self, now: float) -> bool:
        """A login or a probe has failed, and the server is to blame. True if that opens the breaker."""
        self.calm = False
        if self.circuit is Circuit.OPEN:
            if now >= self.probe_at:  # else it is known already, and the next probe is not put off
                self._open(now)
            return False
        self._in_a_row += 1
        if self.circuit is Circuit.CLOSED and self._in_a_row < self._failures:
            return False
        self._open(now)
        return True

    def answered(self, now: float) -> bool:
        """A probe has succeeded. True if that makes a server that was down one on trial."""
        if self.circuit is not Circuit.OPEN:
            return False
        self.circuit = Circuit.ON_TRIAL
        self.closed_at = now
        self.probe_at = inf
        return True

    def worked(self, now: float) -> bool:
        """A login has got through. True if that closes the breaker of a server that was down."""
        self._in_a_row = 0
        self.calm = True
        if self.circuit is Circuit.CLOSED:
            return False
        was_down = self.circuit is Circuit.OPEN
        if was_down:
            self.closed_at = now
        self.circuit = Circuit.CLOSED
        self.probe_at = inf
        self._wait = self._retry
        return was_down

    def _open(self, now: float) -> None:
        if self.circuit is not Circuit.CLOSED:
            self._wait = min(2 * self._wait, LONGEST * self._retry)
        self.circuit = Circuit.OPEN
        self.probe_at = now + self._wait
