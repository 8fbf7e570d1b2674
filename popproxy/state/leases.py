"""The leases of one process that shares them with others: how many it has, and what its store does not know of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from popproxy.state.shared import Lease, Want
from popproxy.state.store import Hold, Take

RENEWAL: Final = 900.0
"""Seconds in which each lease is told again: a store drops those that it has not heard of for an hour."""


class Leases:
    """Counted by owner and what. `changed` is called when there is something to tell that can wait for more."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._held: dict[str, int] = {}
        self._asked: dict[str, int] = {}  # those that the store is being asked for
        self._untold: dict[str, None] = {}  # those whose number the store does not know
        self._renewal: Iterator[str] = iter(())

    # ---- taking and giving back ----

    def ask(self, owner: str, wanted: Sequence[Want]) -> Take | str:
        """What the store is to be asked, to be `answered`; or the first whose limit this process reaches alone."""
        taking = []
        for what, limit in wanted:
            key = _key(owner, what)
            have = self._held.get(key, 0)
            if have >= limit:
                return what
            taking.append((what, limit, have + self._asked.get(key, 0)))
        for what, _ in wanted:
            key = _key(owner, what)
            self._asked[key] = self._asked.get(key, 0) + 1
        return Take(owner, tuple(taking))

    def answered(self, owner: str, wanted: Sequence[Want], *, granted: bool) -> None:
        """The store has answered, or never will."""
        for what, _ in wanted:
            key = _key(owner, what)
            self._asked[key] -= 1
            if not self._asked[key]:
                del self._asked[key]
            if not granted:
                self._untold[key] = None  # another that was asked for meanwhile may have been told with this one

    def decide(self, owner: str, wanted: Sequence[Want], parts: int) -> Lease | str:
        """Take them without the store, whose limits so many processes have in equal `parts`: one at least."""
        for what, limit in wanted:
            if self._held.get(_key(owner, what), 0) >= math.ceil(limit / parts):
                return what
        lease = self.grant(owner, wanted)
        for what, _ in wanted:
            self._untold[_key(owner, what)] = None
        self._changed()
        return lease

    def grant(self, owner: str, wanted: Sequence[Want]) -> Lease:
        """Take what the store has granted, and knows of."""
        keys = [_key(owner, what) for what, _ in wanted]
        for key in keys:
            self._held[key] = self._held.get(key, 0) + 1
        return _Lease(self, keys)

    def give_back(self, keys: Sequence[str]) -> None:
        """Called by a lease."""
        for key in keys:
            count = self._held[key] - 1
            if count:
                self._held[key] = count
            else:
                del self._held[key]
            self._untold[key] = None
        self._changed()

    # ---- telling ----

    @property
    def untold(self) -> bool:
        """Is there anything that the store does not know?"""
        return bool(self._untold)

    def tell(self, most: int) -> list[Hold]:
        """Numbers that the store does not know, up to `most` of them: it is told now."""
        holds = []
        for key in list(self._untold)[:most]:
            del self._untold[key]
            owner, _, what = key.partition("\0")
            holds.append(Hold(owner, what, self._held.get(key, 0)))
        return holds

    def forgotten(self) -> None:
        """The store knows none of them any more."""
        self._untold.update(dict.fromkeys(self._held))

    def renew(self, seconds: float) -> None:
        """Have some told again, so that each has its turn in time; called every so many `seconds`."""
        for _ in range(math.ceil(len(self._held) * seconds / RENEWAL)):
            key = next(self._renewal, None)
            if key is None:
                self._renewal = iter(list(self._held))
                break
            if key in self._held:
                self._untold[key] = None


class _Lease:
    __slots__ = ("_keys", "_leases")

    def __init__(self, leases: Leases, keys: list[str]) -> None:
        self._leases = leases
        self._keys = keys

    def release(self) -> None:
        keys, self._keys = self._keys, []
        if keys:
            self._leases.give_back(keys)


def _key(owner: str, what: str) -> str:
    return f"{owner}\0{what}"
