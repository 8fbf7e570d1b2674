"""Audit records of logins that have failed at the console: each, until there are many; then how many there were."""

from __future__ import annotations

import asyncio

from popproxy.admin.desk import Recorder
from popproxy.types import Outcome

ACTION = "operator_login"
WINDOW = 60.0
"""Seconds that are added up."""
AT_ONCE = 10
"""As many in a window have a record of their own, at once."""
TOLD_APART = 20
"""Of the others, as many pairs of address and name; beyond, only how many they are."""

_Who = tuple[str, str]


class FailedLogins:
    """At most `AT_ONCE` + `TOLD_APART` + 1 records in `WINDOW` seconds, and none of them says less than a flood.

    A name that is no operator's is not written: people type passwords there.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._window: asyncio.TimerHandle | None = None
        self._told = 0
        self._held: dict[_Who, int] = {}

    def add(self, address: str, operator: str | None) -> None:
        """One from `address` in the name of `operator`, None if there is none of the name."""
        if self._window is None:
            self._window = asyncio.get_running_loop().call_later(WINDOW, self.close)
        who = (address, operator or "")
        if self._told < AT_ONCE:
            self._told += 1
            self._record(who, 1)
            return
        if who not in self._held and len(self._held) >= TOLD_APART:
            who = ("", "")
        self._held[who] = self._held.get(who, 0) + 1

    def close(self) -> None:
        """Write what is held back."""
        if self._window is not None:
            self._window.cancel()
            self._window = None
        held, self._held, self._told = self._held, {}, 0
        for who, count in held.items():
            self._record(who, count)

    def _record(self, who: _Who, count: int) -> None:
        address, operator = who
        reason = "bad_credentials" if operator else "unknown_operator" if address else "many"
        whence = {name: value for name, value in (("user.name", operator), ("source.ip", address)) if value}
        fields = {"event.reason": reason, **whence, "popproxy.operator_via": "ssh", "popproxy.attempts": count}
        self._recorder.event(ACTION, Outcome.FAILURE, **{"event.category": ["authentication"]}, **fields)
