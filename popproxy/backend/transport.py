"""Ways to a server other than a plain connection from here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from popproxy.net.channel import Channel
from popproxy.types import Address


class Transport(Protocol):
    """Opens connections for the servers of a pool."""

    @property
    def resolves(self) -> bool:
        """The servers' names are looked up at its other end, not here."""
        ...

    async def open(self, address: Address, deadline: float, ended: Callable[[], None] | None = None) -> Channel:
        """A connection to a server, until loop time `deadline`; `ended` is called when it is closed.

        Raises BackendError (stage ``connect``).
        """
        ...
