"""What workers and their supervisor say to each other about shared state: lines of JSON.

A question is ``[number, what, ...]``; its answer ``[number, ...]``, or ``[number, null]`` if the worker has not joined,
or not after the supervisor has begun anew. ``[0, alone]`` comes unasked when other workers come or go.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from popproxy.state.store import (
    Change,
    Counted,
    Heard,
    Hold,
    Known,
    Make,
    Mark,
    Marked,
    Operation,
    Take,
    Told,
    Unmake,
)

JOIN: Final = "join"
EXECUTE: Final = "execute"
EXCHANGE: Final = "exchange"
LONGEST: Final = 16 << 20
"""Octets of a line; only a store that tells all it knows comes near a hundredth of that."""

_OPERATIONS: dict[str, type[Hold | Mark | Marked | Make | Unmake]] = {
    "hold": Hold, "mark": Mark, "marked": Marked, "make": Make, "unmake": Unmake,
}  # fmt: skip
_NAMES: dict[type, str] = {kind: name for name, kind in _OPERATIONS.items()}


def encode(message: Sequence[object]) -> bytes:
    """A line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def operations_to_json(operations: Sequence[Operation]) -> list[object]:
    """For EXECUTE."""
    return [
        ["take", one.owner, one.wanted] if isinstance(one, Take) else [_NAMES[type(one)], *_fields(one)]
        for one in operations
    ]


def operations_from_json(said: Sequence[Sequence[Any]]) -> list[Operation]:
    """What `operations_to_json` was given."""
    found: list[Operation] = []
    for name, *fields in said:
        if name == "take":
            owner, wanted = fields
            found.append(Take(owner, tuple((what, limit, mine) for what, limit, mine in wanted)))
        else:
            found.append(_OPERATIONS[name](*fields))
    return found


def told_to_json(told: Told) -> list[object]:
    """For EXCHANGE."""
    return [told.number, told.cursor, [change_to_json(change) for change in told.changes], told.notes]


def told_from_json(said: Sequence[Any]) -> Told:
    """What `told_to_json` was given."""
    number, cursor, changes, notes = said
    found = [change_from_json(change) for change in changes]
    return Told(number, cursor, found, [(kind, key, text) for kind, key, text in notes])


def heard_to_json(heard: Heard) -> list[object]:
    """The answer to EXCHANGE."""
    changes = [[age, *change_to_json(change)] for age, change in heard.changes]
    return [heard.cursor, heard.members, changes, heard.notes, heard.more, heard.forgotten, heard.wanted]


def heard_from_json(said: Sequence[Any]) -> Heard:
    """What `heard_to_json` was given."""
    cursor, members, changes, notes, more, forgotten, wanted = said
    found = [(age, change_from_json(change)) for age, *change in changes]
    return Heard(cursor, members, found, notes, more, forgotten, wanted)


def change_to_json(change: Change) -> list[object]:
    """A list of three or four."""
    if isinstance(change, Counted):
        return [change.kind, change.key, change.amount]
    return [change.kind, change.key, change.value, change.age]


def change_from_json(said: Sequence[Any]) -> Change:
    """What `change_to_json` was given."""
    return Counted(*said) if len(said) == 3 else Known(*said)


def _fields(one: Operation) -> list[object]:
    return [getattr(one, name) for name in one.__slots__]
