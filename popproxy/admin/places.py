"""A bounded number of places for connections of which nobody knows whose they are: none is kept if others come."""

from __future__ import annotations

import ipaddress
from typing import Protocol


class Cuttable(Protocol):
    """A connection."""

    def cut(self) -> None:
        """End it at once."""
        ...


class Places:
    """Makes room for whoever comes last: an operator needs a second, and others only stay.

    Where there are too many, the one that has been there longest goes, of the network with most of them (an address;
    IPv6: a /64). So nobody keeps the door shut, neither from one address nor by coming and waiting.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._networks: dict[Cuttable, str] = {}  # the longest there first
        self._counts: dict[str, int] = {}

    def enter(self, connection: Cuttable, address: str) -> None:
        """One more; another one may have to go."""
        if len(self._networks) >= self._limit:
            most = max(self._counts.values())
            oldest = next(one for one, network in self._networks.items() if self._counts[network] == most)
            self.leave(oldest)
            oldest.cut()
        network = self._networks[connection] = _network(address)
        self._counts[network] = self._counts.get(network, 0) + 1

    def __len__(self) -> int:
        return len(self._networks)

    def leave(self, connection: Cuttable) -> None:
        """It has gone, or is known now; nothing if it had no place."""
        network = self._networks.pop(connection, None)
        if network is not None:
            self._counts[network] -= 1
            if not self._counts[network]:
                del self._counts[network]


def _network(address: str) -> str:
    if ":" not in address or address.startswith("::ffff:"):
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
