"""One duration for every wrong login, whoever judged it and however long that took."""

from __future__ import annotations

import math
from typing import Final

_STEPS: Final = 8  # to the least delay
_LONGEST: Final = 4  # times the least delay
_HOLD: Final = 900.0


class UniformDelay:
    """When to answer a wrong login: `least` seconds after it was sent, or as long as the slowest judge takes.

    Two judges in a chain, one quicker than `least` and one slower (many servers wait two seconds themselves), would
    tell by their time whose user it is. So the first one that is late raises the delay for all, by whole steps of an
    eighth of `least` and up to four times of it, and the delay comes down only after a quarter of an hour in which
    nobody needed it: coming down at once would tell again.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._delay = least
        self._needed = 0.0  # when a judge last took longer than the least delay

    def answer_at(self, started: float, now: float) -> float:
        """When to answer an attempt that was sent at `started` and has been judged `now`; any monotonic seconds."""
        took = now - started
        if took > self._least:
            self._raise(took, now)
        elif self._delay > self._least and now - self._needed > _HOLD:
            self._delay = self._least
        return started + self._delay

    def _raise(self, took: float, now: float) -> None:
        self._needed = now
        if took > self._delay and self._least:
            step = self._least / _STEPS
            # at least a step beyond what was seen: the next one may be a little slower
            self._delay = min(step * (math.floor(took / step) + 2), _LONGEST * self._least)
