"""Something to say about the configuration, before it is known where in the file it stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

KeyPath = tuple[str | int, ...]
"""The way from the root of the file to a value: ``("listeners", 0, "listen", 1)``."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, or a warning, at `path`.

    `place` is line and column, both from 1, where the reader knows them; otherwise they are looked up by `path`. The
    finding also rests on the values at `because`: if one of those is wrong itself, the finding is dropped.
    """

    path: KeyPath
    what: str
    cure: str
    place: tuple[int, int] | None = None
    warning: bool = False
    because: tuple[KeyPath, ...] = ()


def dotted(path: KeyPath) -> str:
    """How people write a path: ``listeners[0].listen[1]``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def related(one: KeyPath, other: KeyPath) -> bool:
    """Is one of them the other, or inside it?"""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def twice(values: Iterable[object], at: KeyPath) -> Iterator[Finding]:
    """A finding for each of `values` (the list at `at`) that has been there before."""
    seen: set[object] = set()
    for number, value in enumerate(values):
        if value in seen:
            yield Finding((*at, number), f"{value} stands in this list already", "remove one of the two")
        seen.add(value)
