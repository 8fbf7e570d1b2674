"""Who may connect at all: limits on connections, in total and for one address."""

from __future__ import annotations

import ipaddress
from typing import Literal

from popproxy.config.model import Limits

Refusal = Literal["limit", "address_limit"]


class Admission:
    """Counts connections. IPv6 clients own a /64 and could otherwise have as many addresses as they like."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_address: dict[str, int] = {}
        self.connections = 0

    def enter(self, host: str) -> Refusal | None:
        """Count a connection from `host`, or say why not. What has entered must `leave`.

        "" stands for a front that has yet to say for whom it has come: only the total limits those.
        """
        if self.connections >= self._limits.connections:
            return "limit"
        key = _key(host)
        count = self._by_address.get(key, 0)
        if key and count >= self._limits.connections_per_address:
            return "address_limit"
        self.connections += 1
        self._by_address[key] = count + 1
        return None

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
