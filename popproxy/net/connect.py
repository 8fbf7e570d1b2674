"""Opening a connection: one non-blocking attempt at one address."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable

from popproxy.errors import ConnectFailed
from popproxy.net.channel import NOT_REACHED, Channel
from popproxy.net.reactor import Reactor
from popproxy.types import Address

_BIND_ADDRESS_NO_PORT = 24  # Linux; Python has no name for it before 3.12


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
