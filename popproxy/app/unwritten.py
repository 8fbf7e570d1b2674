"""Audit records that a worker was given and has not said to be written: if it ends, others must write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from popproxy.types import Outcome

MOST = 1000
"""Records that one worker can owe; the latest."""

Record = tuple[str, Outcome, dict[str, object]]
"""Its action, its outcome, and its other fields."""


class Unwritten:
    """Those of one worker, by numbers that are theirs in both processes."""

    def __init__(self) -> None:
        self._latest = 0
        self._records: dict[int, Record] = {}

    def add(self, record: Record) -> int:
        """One more is given; returns its number."""
        self._latest += 1
        self._records[self._latest] = record
        if len(self._records) > MOST:
            del self._records[next(iter(self._records))]
        return self._latest

    def written(self, number: int) -> None:
        """The worker says so."""
        self._records.pop(number, None)

    def take(self) -> list[Record]:
        """All of them, in their order: they are somebody else's from now on."""
        records, self._records = self._records, {}
        return list(records.values())

    def hand_over(self) -> list[Any]:
        """For another program in this process, good for JSON."""
        records = [
            [number, action, outcome.value, fields] for number, (action, outcome, fields) in self._records.items()
        ]
        return [self._latest, records]

    def take_over(self, told: Sequence[Any]) -> None:
        """Go on with what `hand_over` has told."""
        self._latest, records = told
        self._records = {number: (action, Outcome(outcome), fields) for number, action, outcome, fields in records}
