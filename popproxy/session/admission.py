"""Who may connect at all: limits on connections, in total and for one address."""

from __future__ import annotations

import heapq
import ipaddress
from collections.abc import Mapping
from itertools import islice
from typing import Literal, Protocol

from popproxy.config.model import Limits

Refusal = Literal["limit", "address_limit"]


CROWDS = 1000
"""As many addresses are told to the other workers, those with most connections."""
LOOKED_AT = 64
"""Of so many who have waited longest one is chosen to make room."""


class Waiting(Protocol):
    """A connection that has not logged in yet."""

    @property
    def busy(self) -> bool:
        """A login is being judged: the time that it takes is ours."""
        ...

    def make_room(self) -> None:
        """End, for others to come in."""
        ...


class Admission:
    """Counts connections. IPv6 clients own a /64 and could otherwise have as many addresses as they like.

    Where there is no room in all, those who have not logged in make room for those who come, the first of them first:
    else whoever opens enough connections and says nothing would keep everybody out. `waiting` has them in their order.

    `elsewhere` are those of an address that other workers have, as far as anybody has told (see `crowds`).
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_address: dict[str, int] = {}
        self.connections = 0
        self.elsewhere: Mapping[str, int] = {}
        self.waiting: dict[Waiting, None] = {}

    def evict(self, count: int = 1) -> bool:
        """End up to so many connections of those who have not logged in, the oldest first. False if there is none."""
        ended = 0
        for one in tuple(islice(self.waiting, LOOKED_AT)):
            del self.waiting[one]
            if one.busy:  # its turn has passed: there may be thousands behind it that only wait
                self.waiting[one] = None
                continue
            one.make_room()
            ended += 1
            if ended == count:
                break
        return ended > 0

    def enter(self, host: str) -> Refusal | None:
        """Count a connection from `host`, or say why not. What has entered must `leave`.

        "" stands for a front that has yet to say for whom it has come: only the total limits those.
        """
        key = _key(host)
        here = self._by_address.get(key, 0)
        if key and here + self.elsewhere.get(key, 0) >= self._limits.connections_per_address:
            return "address_limit"
        if self.connections >= self._limits.connections and not self.evict():
            return "limit"
        count = self._by_address.get(key, 0)  # perhaps one less now
        self.connections += 1
        self._by_address[key] = count + 1
        return None

    def crowds(self, workers: int) -> dict[str, int]:
        """Connections by address, of those who have so many that it matters to the other ones of so many `workers`.

        What is left out is a quarter of the limit for all of them together: nobody gets in more than that beyond it.
        """
        least = max(1, self._limits.connections_per_address // (4 * workers))
        found = {key: count for key, count in self._by_address.items() if count >= least and key}
        if len(found) <= CROWDS:
            return found
        return dict(heapq.nlargest(CROWDS, found.items(), lambda one: one[1]))

    def leave(self, host: str) -> None:
        """The connection has ended."""
        self.connections -= 1
        key = _key(host)
        count = self._by_address[key] - 1
        if count:
            self._by_address[key] = count
        else:
            del self._by_address[key]


def _key(host: str) -> str:
    if ":" not in host:
        return host
    return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
