"""Opening a connection: name resolution with a short memory, and one non-blocking attempt at one address."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Callable

from popproxy.errors import ConnectFailed
from popproxy.net.channel import NOT_REACHED, Channel
from popproxy.net.reactor import Reactor
from popproxy.types import Address

_BIND_ADDRESS_NO_PORT = 24  # Linux; Python has no name for it before 3.12


class Resolver:
    """Host names to addresses. Answers are kept for `ttl` seconds, and longer while the name service is silent."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ttl: float = 30.0) -> None:
        self._loop = loop
        self._ttl = ttl
        self._known: dict[Address, tuple[float, list[Address]]] = {}
        self._asking: dict[Address, asyncio.Task[list[Address]]] = {}

    def known(self, address: Address) -> list[Address] | None:
        """The answer to `resolve`, if it needs no question."""
        known = self._known.get(address)
        if known is not None and known[0] > self._loop.time():
            return known[1]
        if known is None and _is_ip(address.host):
            self._known[address] = (float("inf"), [address])
            return [address]
        return None

    def stale(self, address: Address) -> list[Address] | None:
        """The last answer, however old: for when the name service is silent."""
        known = self._known.get(address)
        return None if known is None else known[1]

    async def resolve(self, address: Address) -> list[Address]:
        """Addresses to try, in order. Raises ConnectFailed(reason="dns")."""
        known = self._known.get(address)
        task = self._asking.get(address)
        if task is None:  # one question for all sessions that want the same name
            task = self._asking[address] = self._loop.create_task(self._ask(address))
            task.add_done_callback(lambda _: self._asking.pop(address, None))
        try:
            return await asyncio.shield(task)
        except OSError as error:
            if known is not None:
                return known[1]  # an old answer serves while the name service is down
            raise ConnectFailed(f"{address.host} does not resolve: {error.strerror or error}", "dns") from None

    async def _ask(self, address: Address) -> list[Address]:
        infos = await self._loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        found = list(dict.fromkeys(Address(str(info[4][0]), address.port) for info in infos))
        self._known[address] = (self._loop.time() + self._ttl, found)
        return found


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class CountedChannel(Channel):
    """A channel that tells when it has no socket any more."""

    __slots__ = ("_ended",)

    def __init__(self, reactor: Reactor, sock: socket.socket, ended: Callable[[], None]) -> None:
        self._ended: Callable[[], None] | None = ended
        super().__init__(reactor, sock)

    def _destroy(self, reason: str = "closed") -> None:
        super()._destroy(reason)
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()


def channel_on(reactor: Reactor, sock: socket.socket, ended: Callable[[], None] | None = None) -> Channel:
    """A channel on a socket; `ended` is called when it has none any more."""
    return Channel(reactor, sock) if ended is None else CountedChannel(reactor, sock, ended)


def connect(
    reactor: Reactor, address: Address, source: str | None = None, ended: Callable[[], None] | None = None
) -> Channel:
    """A channel to one IP address, whose connection may still be under way; `ended` is called when it is closed.

    Nobody waits for it: what is written meanwhile is kept, and a failure ends the channel as any later one would, with
    a reason of `NOT_REACHED` if the connection never came about. `source` is the address of ours that the server is to
    see. Raises ConnectFailed.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:  # no descriptor left
        raise ConnectFailed(f"{address}: {error.strerror or error}", "other") from None
    try:
        # before anything is written: Nagle against a delayed ACK costs 44 ms a reply
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source is not None:
            _bind(sock, address, source)
        code = sock.connect_ex((address.host, address.port))
        if code not in (0, errno.EINPROGRESS):
            raise ConnectFailed(f"{address}: {os.strerror(code)}", NOT_REACHED.get(code, "unreachable"))
        return channel_on(reactor, sock, ended)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise ConnectFailed(f"{address}: {error.strerror or error}", "other") from None
        raise


def _bind(sock: socket.socket, address: Address, source: str) -> None:
    """Raises ConnectFailed."""
    try:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)  # a port is chosen when we connect
        sock.bind((source, 0))
    except OSError as error:
        raise ConnectFailed(f"{address}: cannot be reached from {source}: {error.strerror or error}", "other") from None
