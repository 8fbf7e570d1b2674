"""Metrics of several processes as one: plain dictionaries, good for JSON, added up by the supervisor.

A snapshot holds ``{kind: {family: {key: value}}}``. Kinds are ``counter`` and ``histogram`` (which never go backwards,
whoever dies), and for gauges ``sum``, ``max`` and ``min``. A key is the label values put together with `SEPARATOR`; the
value of a histogram is its buckets and, last, its sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeGuard

from popproxy.observe.metric_families import families as all_families

SEPARATOR = "\x1f"
Snapshot = dict[str, dict[str, dict[str, Any]]]
SERIES = 200_000
"""Values in a snapshot; what has died is remembered for ever."""
LARGEST = 1e18
"""More than can be counted."""
LONGEST = 255
"""Characters of a name that is a label's value: of a listener, a server, a pool."""
PROCESS = {
    "process_cpu_seconds": "counter",
    "process_virtual_memory_bytes": "sum",
    "process_resident_memory_bytes": "sum",
    "process_open_fds": "sum",
    "process_start_time_seconds": "min",
    "process_max_fds": "min",
}
"""What Linux counts for a process, and how it becomes one number for several."""
STRAYS = "metrics_strays"


def fitting(told: object) -> Snapshot | None:
    """What is in our families, under labels that they can have; None if `told` cannot be added up.

    Another process has said it, which strangers may have taken over. Values of closed sets are looked up; a name that
    stands in a configuration, which the supervisor does not read, must at least look like one.
    """
    if not _is_snapshot(told):
        return None
    places = _places()
    return {
        kind: {
            name: {key: value for key, value in values.items() if _fits(key, places[kind, name])}
            for name, values in families.items()
            if (kind, name) in places
        }
        for kind, families in told.items()
    }


_Values = frozenset[str] | None  # of a label; None: names of a configuration


@cache
def _places() -> dict[tuple[str, str], list[_Values]]:
    """The labels of each family, by its kind and name."""
    some = ["?"]
    found: dict[tuple[str, str], list[_Values]] = {(kind, name): [] for name, kind in PROCESS.items()}
    found["counter", STRAYS] = []
    for family in all_families(some, some, some, some):
        kind = family.merged if family.kind == "gauge" else family.kind
        found[kind, family.name] = [
            None if not values or "?" in values else frozenset(values) for values in family.labels.values()
        ]
    return found


def _fits(key: str, wanted: list[_Values]) -> bool:
    if not wanted:
        return not key
    parts = [key] if len(wanted) == 1 else key.split(SEPARATOR)
    return len(parts) == len(wanted) and all(
        part in values if values is not None else 0 < len(part) <= LONGEST and part.isprintable()
        for part, values in zip(parts, wanted, strict=True)
    )


def _is_snapshot(told: object) -> TypeGuard[Snapshot]:
    """Can it be added up?"""
    if not isinstance(told, dict):
        return False
    fits = {"histogram": _are_lists, "counter": _are_counts}
    good = all(_all(families, fits.get(kind, _are_numbers)) for kind, families in told.items())
    return good and _size(told) <= SERIES


def _size(snapshot: Snapshot) -> int:
    return sum(len(values) for families in snapshot.values() for values in families.values())


def _all(told: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(told, dict) and all(map(fits, told.values()))


def _are_numbers(values: object) -> bool:
    return _all(values, _is_number)


def _are_counts(values: object) -> bool:
    return _all(values, _is_count)


def _are_lists(values: object) -> bool:
    return _all(values, lambda value: isinstance(value, list) and all(map(_is_count, value)))


def _is_number(value: object) -> bool:
    """Neither infinite nor none."""
    return isinstance(value, int | float) and -LARGEST <= value <= LARGEST


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= LARGEST


def keyed(key: str | tuple[str, ...]) -> str:
    """Label values as one text."""
    return key if isinstance(key, str) else SEPARATOR.join(key)


def labels(key: str, names: int) -> str | tuple[str, ...]:
    """Label values again, of a family with so many labels."""
    return key if names == 1 else tuple(key.split(SEPARATOR)) if names else ()


def merged(past: Snapshot, living: Iterable[Snapshot], serving: Iterable[Snapshot]) -> Snapshot:
    """All of them as one.

    `past` is what `settle` has kept of processes that are gone; `living` are all others, `serving` those among them
    that take new clients: ``max`` and ``min`` are theirs.
    """
    result: Snapshot = {kind: {name: dict(values) for name, values in past.get(kind, {}).items()} for kind in _KINDS}
    for snapshot in living:
        for kind in ("counter", "histogram", "sum"):
            _add(result[kind], snapshot.get(kind, {}))
    for snapshot in serving:
        for kind, choose in (("max", max), ("min", min)):
            for name, values in snapshot.get(kind, {}).items():
                into = result[kind].setdefault(name, {})
                for key, value in values.items():
                    into[key] = choose(into[key], value) if key in into else value
    return result


def settle(past: Snapshot, last: Snapshot) -> None:
    """Keep in `past` what a process that is gone has counted; nothing new once there is too much."""
    full = _size(past) >= SERIES
    for kind in ("counter", "histogram"):
        before = past.setdefault(kind, {})
        told = last.get(kind, {})
        if full:
            told = {
                name: {key: value for key, value in values.items() if key in before.get(name, {})}
                for name, values in told.items()
            }
        _add(before, told)


_KINDS = ("counter", "histogram", "sum", "max", "min")


def _add(into: dict[str, dict[str, Any]], more: Mapping[str, Mapping[str, Any]]) -> None:
    for name, values in more.items():
        family = into.setdefault(name, {})
        for key, value in values.items():
            before = family.get(key)
            if before is None:
                family[key] = value
            elif isinstance(value, list):
                # with other buckets after an upgrade: those of the newer version count
                family[key] = (
                    [a + b for a, b in zip(before, value, strict=True)] if len(before) == len(value) else value
                )
            else:
                family[key] = before + value
