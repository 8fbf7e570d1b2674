"""Connections to the console whose clients have not yet proven who they are: few, and none for long if others come."""

from __future__ import annotations

import ipaddress
from typing import Protocol

AT_A_TIME = 32
"""Of them, whatever number of operators there may be."""


class Cuttable(Protocol):
    """A connection."""

    def cut(self) -> None:
        """End it at once."""
        ...


class Strangers:
    """Makes room for whoever comes last: an operator needs a second to log in, and others only stay.

    Where there are too many, the one that has been there longest goes, of the network with most of them (an address;
    IPv6: a /64). So nobody keeps the door shut, neither from one address nor by coming and waiting.
    """

    def __init__(self, limit: int = AT_A_TIME) -> None:
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

    def leave(self, connection: Cuttable) -> None:
        """It has gone, or is an operator's; nothing if it was none of these."""
        network = self._networks.pop(connection, None)
        if network is not None:
            self._counts[network] -= 1
            if not self._counts[network]:
                del self._counts[network]


def _network(address: str) -> str:
    if ":" not in address or address.startswith("::ffff:"):
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
