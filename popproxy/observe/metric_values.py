"""The numbers behind the metrics: dictionaries and integers, cheap to change on the hot path, read only at a scrape."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Generic, TypeVar, cast

Key = str | tuple[str, ...]
"""Label values in the order of the family's labels; a single one stands for itself."""

K = TypeVar("K", bound=Key)


class Series(dict[K, float], Generic[K]):
    """The values of a family by label values, all of them there from the start: ``series[key] += 1``.

    The label values are a closed set. A key outside of it (a bug, or a peer's word used as a label) never becomes a
    series: each unknown label value counts as ``other`` where the label has that, else the key counts as `strays`.
    However many such keys come, at most one is stored.
    """

    def __init__(self, *labels: Sequence[str]) -> None:
        keys = labels[0] if len(labels) == 1 else list(product(*labels))
        super().__init__(dict.fromkeys(cast("Iterable[K]", keys), 0))
        self._labels = labels
        self._known = frozenset(self)
        self._strays = 0

    def expect(self, value: str) -> None:
        """`value` is one of the closed set of the first label in this configuration."""
        if value not in self._labels[0]:
            self._labels = ((*self._labels[0], value), *self._labels[1:])
            keys = cast("list[K]", [value] if len(self._labels) == 1 else list(product((value,), *self._labels[1:])))
            for key in keys:
                self.setdefault(key, 0)
            self._known |= frozenset(keys)  # and not what is stored as well: it may be a stray

    def __missing__(self, key: K) -> float:
        self._fold()  # `key` is stored next; so this removes the previous one
        return 0

    def settled(self) -> tuple[dict[K, float], int]:
        """The values with strays folded in, and how many keys had no place. Changes nothing, so any thread may ask."""
        values = dict(self)
        strays = self._strays
        for key in values.keys() - self._known:
            strays += _fold_into(values, self._place(key), values.pop(key))
        return values, strays

    def _fold(self) -> None:
        for key in self.keys() - self._known:
            self._strays += _fold_into(self, self._place(key), self.pop(key))

    def _place(self, key: K) -> K | None:
        """The known key nearest to `key`."""
        parts = (key,) if isinstance(key, str) else key
        if len(parts) != len(self._labels):
            return None
        folded = []
        for part, allowed in zip(parts, self._labels, strict=True):
            value = next((v for v in (part, "other", "OTHER") if v in allowed), None)
            if value is None:
                return None
            folded.append(value)
        return cast("K", folded[0] if isinstance(key, str) else tuple(folded))


def _fold_into(values: dict[K, float], place: K | None, value: float) -> int:
    """Add `value` where it belongs; returns how many found no place."""
    if place is None:
        return 1
    values[place] += value
    return 0


class Histogram:
    """How often a duration in seconds fell into which bucket."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.sum = 0.0
        self._bounds = tuple(bounds)  # upper bounds, inclusive, ascending
        self._counts = [0] * (len(bounds) + 1)  # observations by bucket, the last one beyond all bounds

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    def counts(self) -> tuple[list[int], float]:
        """Observations by bucket, the last one beyond all bounds, and their sum."""
        return list(self._counts), self.sum


class LabelledHistogram:
    """A histogram for each value of the labels; values outside the closed sets are dropped."""

    __slots__ = ("_bounds", "series")

    def __init__(self, bounds: Sequence[float], *labels: Sequence[str]) -> None:
        keys: Iterable[Key] = labels[0] if len(labels) == 1 else product(*labels)
        self.series = {key: Histogram(bounds) for key in keys}
        self._bounds = bounds

    def expect(self, key: Key) -> None:
        """`key` is one of the closed set in this configuration."""
        self.series.setdefault(key, Histogram(self._bounds))

    def observe(self, key: Key, seconds: float) -> None:
        """Count one observation of `seconds` for `key`."""
        histogram = self.series.get(key)
        if histogram is not None:
            histogram.observe(seconds)
