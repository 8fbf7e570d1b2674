"""SOCKS5 (RFC 1928, 1929): a way to servers through a gateway that connects on our behalf."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from python_socks import ProxyError, ProxyType
from python_socks.async_.asyncio import Proxy

from popproxy.config.model_socks import Socks
from popproxy.errors import BackendError, ConnectFailed
from popproxy.net.channel import Channel
from popproxy.net.connect import channel_on
from popproxy.net.names import Resolver
from popproxy.net.reactor import Reactor
from popproxy.types import Address, Secret

_REFUSALS = {
    2: ("rejected", "the SOCKS proxy does not allow it"),
    3: ("unreachable", "the SOCKS proxy has no way to its network"),
    4: ("unreachable", "the SOCKS proxy cannot reach it"),
    5: ("refused", "connection refused, says the SOCKS proxy"),
    6: ("timeout", "the SOCKS proxy has waited in vain"),
}
"""What the proxy says of the server (RFC 1928 section 6), as a reason and in words. Other codes are its own trouble."""


def printable(password: Secret) -> bool:
    """Can it be sent? RFC 1929 says nothing of characters outside ASCII."""
    octets = password.reveal()
    return 0 < len(octets) < 256 and all(0x20 <= octet < 0x7F for octet in octets)


async def connect(
    config: Socks, password: Secret | None, hosts: list[Address], address: Address, source: str | None = None
) -> socket.socket:
    """A connection with `address` as the proxy sees it; `hosts` is where the proxy is. Raises BackendError.

    Nobody waits here longer than the caller does.
    """
    trouble = ""
    for host in hosts:
        proxy = Proxy(
            ProxyType.SOCKS5, host.host, host.port, config.user,
            None if password is None else password.reveal().decode("ascii"), rdns=True,
        )  # fmt: skip
        try:
            return await proxy.connect(
                address.host, address.port, timeout=3600, local_addr=None if source is None else (source, 0)
            )
        except ProxyError as error:
            reason, what = _REFUSALS.get(error.error_code or 0, ("socks", f"the SOCKS proxy says: {error}"))
            raise BackendError(f"{address}: {what}", "connect", reason) from None
        except OSError as error:
            trouble = os.strerror(error.errno) if error.errno else str(error)
        except ValueError:  # a name that cannot be sent
            raise BackendError(f"{address}: a name that the SOCKS proxy cannot be told", "connect", "socks") from None
    raise BackendError(f"the SOCKS proxy {config.address} cannot be reached: {trouble}", "connect", "socks")


class SocksProxy:
    """The way to a pool's servers: a Transport. `source` is the address of ours that the proxy sees."""

    def __init__(
        self, config: Socks, password: Secret | None, source: str | None, reactor: Reactor, resolver: Resolver
    ) -> None:
        self.resolves = config.resolve == "remote"
        self._config = config
        self._password = password
        self._source = source
        self._reactor = reactor
        self._resolver = resolver

    async def open(self, address: Address, deadline: float, ended: Callable[[], None] | None = None) -> Channel:
        """See Transport."""
        proxy = self._config.address
        try:
            async with asyncio.timeout_at(deadline):
                hosts = self._resolver.known(proxy) or await self._resolver.resolve(proxy)
                sock = await connect(self._config, self._password, hosts, address, self._source)
        except ConnectFailed as error:
            raise BackendError(f"the SOCKS proxy: {error}", "connect", "socks") from None
        except TimeoutError:
            raise BackendError(f"no connection with {address} in time", "connect", "timeout") from None
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return channel_on(self._reactor, sock, ended)
