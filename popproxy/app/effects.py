"""When a changed key takes effect after a reload."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Effect(StrEnum):
    """From when on."""

    NOW = "now"  # the supervisor's own, and where popproxy can be reached
    NEW_SESSIONS = "new_sessions"  # sessions that are here go on with what they have begun with
    RESTART = "restart"  # the supervisor keeps it for life

    @property
    def words(self) -> str:
        """For people."""
        return _WORDS[self]


_WORDS: Final = {Effect.NOW: "now", Effect.NEW_SESSIONS: "for new sessions", Effect.RESTART: "after a restart only"}

KEPT: Final = {"process.user": "user", "process.group": "group"}
"""Keys that need a restart, and where they stand in a Plan: files and sockets belong to somebody already."""

EFFECTS: Final = {
    **dict.fromkeys(KEPT, Effect.RESTART),
    **dict.fromkeys(
        ("listeners[].listen", "http", "control", "workers", "timeouts.drain", "timeouts.reload"), Effect.NOW
    ),
    **dict.fromkeys(
        (
            "listeners", "pools", "tunnels", "routing", "names", "tls", "users", "vault", "scram", "directories",
            "external", "oauth", "rpop", "kerberos", "policy", "authentication", "penalties", "limits",
            "shared_state", "timeouts", "audit", "logging", "console", "process",
        ),
        Effect.NEW_SESSIONS,
    ),
}  # fmt: skip
"""By dotted key, ``[]`` for any entry of a list. What is inside of a key has its effect, if it does not stand here."""


def effect_of(key: str) -> Effect:
    """Of a dotted key, as ``listeners[0].banner``. Raises KeyError for one whose section is not declared."""
    key = re.sub(r"\[\d+\]", "[]", key)
    while key not in EFFECTS:
        if "." not in key and "[" not in key:
            raise KeyError(key)
        key = key[: max(key.rfind("."), key.rfind("["))]
    return EFFECTS[key]


def described(change: Mapping[str, object]) -> str:
    """A change (its `key`, and perhaps what it was changed `from` and `to`) in a line."""
    if "to" not in change:
        return str(change["key"])
    before, after = (_value(change[which]) for which in ("from", "to"))
    return f"{change['key']}: {before} -> {after}"


def _value(value: object) -> str:
    """As YAML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
