"""Which server of a pool a login goes to, and which next if that fails. Without a clock or any input and output.

Three ways to choose, each of which is an order of all servers:

* ``order``: as they stand in the configuration;
* ``weights``: by chance, each as often first as its weight says;
* ``hash``: by the user's name, so that a user has one server as long as it is there. If servers come and go, only the
  users of these move (rendezvous hashing).

In that order come first those that are well, then those that were down and are given a share of the logins that grows
with time (slow start), then those that are down, for a login must not fail that could succeed. Where the servers do not
share their maildrops only the first is used, well or not: at another one the user would find an empty maildrop.

Times are seconds of any clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from math import inf, log
from typing import Literal

from popproxy.backend.breaker import Breaker, Circuit

LEAST_SHARE = 0.1
"""Of its logins that a server gets at the beginning of its slow start."""


class State(StrEnum):
    """What becomes of logins for a server. The last two are orders of an operator."""

    UP = "up"
    DOWN = "down"
    """Found out by failures; used if nothing else is left."""
    DRAIN = "drain"
    """No logins; open sessions go on."""
    MAINTENANCE = "maintenance"
    """No logins and no checks."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How to choose among the servers of a pool."""

    choose: Literal["order", "weights", "hash"] = "order"
    shared: bool = True
    failures: int = 3
    retry: float = 5.0
    slow_start: float = 0.0


class Member:
    """One server of a pool. `limit` is how many connections it may have at a time; `label` tells it from the others.

    With a lower `priority` it comes before others, however the pool chooses (SRV records have such).
    """

    __slots__ = ("breaker", "check_at", "connections", "label", "limit", "order", "priority", "trial", "weight")

    def __init__(self, label: str, rules: Rules, weight: float = 1, limit: int | None = None) -> None:
        self.label = label
        self.weight = weight
        self.priority = 0
        self.limit = limit
        self.breaker = Breaker(rules.failures, rules.retry)
        self.order = State.UP  # an operator's
        self.connections = 0  # to it, counted only where there is a limit
        self.trial = False  # a login is finding out whether it works again
        self.check_at = inf  # when the next of its regular checks is due

    @property
    def state(self) -> State:
        """What is known and ordered, in one word."""
        if self.order is not State.UP:
            return self.order
        return State.DOWN if self.breaker.circuit is Circuit.OPEN else State.UP

    @property
    def full(self) -> bool:
        """It may have no more connections."""
        return self.limit is not None and self.connections >= self.limit

    @property
    def probe_at(self) -> float:
        """When it should be probed; infinity for never."""
        return inf if self.order is State.MAINTENANCE else min(self.breaker.probe_at, self.check_at)


@dataclass(frozen=True, slots=True)
class Choice:
    """Servers to be tried in turn: first `well`, then, if none of these answers, `last`."""

    well: list[Member]
    last: list[Member]


class Balancer:
    """The servers of one pool. `chance` gives numbers from 0 to 1 (without 1)."""

    def __init__(self, members: Sequence[Member], rules: Rules, chance: Callable[[], float]) -> None:
        self.members = list(members)
        self.rules = rules
        self._chance = chance

    def choose(self, user: str, now: float, named: Member | None = None) -> Choice:
        """Where to try for `user`, his name at the servers; `named`: a directory says that his mail is there."""
        ranked = self._ranked(user)
        if named is not None:
            ranked = [named, *(member for member in ranked if member is not named)]
        if not self.rules.shared:
            return Choice([member for member in ranked[:1] if member.order is State.UP], [])
        well: list[Member] = []
        later: list[Member] = []
        last: list[Member] = []
        for member in ranked:
            if member.order is State.UP:
                down = member.breaker.circuit is Circuit.OPEN
                (last if down else well if self._takes_its_share(member, now) else later).append(member)
        return Choice([*well, *later], last)

    def _ranked(self, user: str) -> list[Member]:
        match self.rules.choose:
            case "order":
                return self.members
            case "weights":
                return sorted(self.members, key=lambda one: (one.priority, _distance(1.0 - self._chance(), one.weight)))
            case "hash":
                return sorted(
                    self.members, key=lambda one: (one.priority, _distance(_hashed(user, one.label), one.weight))
                )

    def _takes_its_share(self, member: Member, now: float) -> bool:
        breaker, slow_start = member.breaker, self.rules.slow_start
        if breaker.circuit is Circuit.ON_TRIAL:
            return not member.trial
        age = now - breaker.closed_at
        return age >= slow_start or self._chance() < max(LEAST_SHARE, age / slow_start)


def _distance(share: float, weight: float) -> float:
    """The smallest of these is each member's as often as its weight says, for independent `share` from 0 to 1."""
    return -log(share) / weight if weight else inf


def _hashed(user: str, label: str) -> float:
    digest = blake2b(f"{user}\0{label}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest) + 1) / (2**64 + 1)
