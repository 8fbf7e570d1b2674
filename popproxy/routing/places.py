"""Where directories say that a user's mail is, whoever has let the user in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from time import monotonic
from typing import Final

from popproxy.directories.entry import Entry, Finder, Refused
from popproxy.errors import Unavailable
from popproxy.observe.logs import get_logger
from popproxy.types import Location

CAPACITY: Final = 20_000
"""Users whose places are remembered; the one asked for longest ago goes first."""
STRANGERS: Final = 2_000
"""Names that no directory knows and that have proved nothing: remembered apart, for anybody can make them up."""
PATIENCE: Final = 5.0
"""Seconds for which a directory that has not answered is left alone, as far as older answers serve."""

Place = Location | Refused | None
"""None: no directory knows the user, or it does not say where the mail is."""

log = get_logger("routing")


@dataclass(frozen=True, slots=True)
class _Known:
    """What was said, and when (monotonic)."""

    place: Place
    at: float


class Places:
    """Asks `finders` in turn; the first that knows the user decides.

    A password that comes with an answer is left out: nobody has proved anything to this directory. An answer counts for
    `fresh` seconds, and for `stale` seconds more while it cannot be had anew: mail does not move
    because a directory is down. Who was never asked for has to wait until it is back: the wrong server would have an
    empty maildrop for him.
    """

    def __init__(
        self, finders: Sequence[Finder], fresh: float, stale: float, clock: Callable[[], float] = monotonic
    ) -> None:
        self._finders = tuple(finders)
        self._fresh = fresh
        self._stale = stale
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._strangers: OrderedDict[str, _Known] = OrderedDict()
        self._leave_alone_until = 0.0

    async def find(self, user: str, *, proven: bool = True, age: float = inf) -> Place:
        """The place of a canonical name. Raises Unavailable.

        `proven`: that there is such a user. Answers of `age` seconds and more do not count any more.
        """
        known, now = self._known.get(user) or self._strangers.get(user), self._clock()
        if known is not None and now - known.at >= age:
            known = None
        if known is not None and now < known.at + self._fresh:
            return known.place
        serves = known is not None and now < known.at + self._fresh + self._stale
        if known is not None and serves and now < self._leave_alone_until:
            return known.place
        try:
            place, stranger = await self._ask(user)
        except Unavailable as error:
            self._leave_alone_until = self._clock() + PATIENCE
            if known is None or not serves:
                raise
            log.warning("an older answer of a directory is used", why=str(error))
            return known.place
        self._leave_alone_until = 0.0
        self._strangers.pop(user, None)
        self._known.pop(user, None)
        if stranger and not proven:
            _put(self._strangers, user, _Known(place, now), STRANGERS)
        else:
            _put(self._known, user, _Known(place, now), CAPACITY)
        return place

    def confirm(self, user: str) -> None:
        """A server has let the user in: what is remembered of him is worth as much as what is known of any other."""
        known = self._strangers.pop(user, None)
        if known is not None:
            _put(self._known, user, known, CAPACITY)

    async def _ask(self, user: str) -> tuple[Place, bool]:
        """The place, and whether nobody knows the user."""
        for finder in self._finders:
            answer = await finder.find(user)
            if isinstance(answer, Entry):
                return None if answer.location is None else replace(answer.location, password=None), False
            if not answer.stranger:
                return answer, False
        return None, True


def _put(table: OrderedDict[str, _Known], user: str, known: _Known, most: int) -> None:
    table[user] = known
    if len(table) > most:
        table.popitem(last=False)
