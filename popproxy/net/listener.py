"""Listening sockets: binding them, and accepting without being drowned by a lack of descriptors."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable

from popproxy.net.reactor import READABLE, Reactor
from popproxy.types import Address

UNSENT = 128 * 1024
"""Octets that the kernel takes for a client beyond those on their way: else one that stops reading holds 4 MB of it."""
BACKLOG = 4096
"""asyncio's 100 overflows with 256 clients at once, and the rest wait a second for the next SYN."""
_ACCEPTS = 64  # for one readiness, so that established sessions get their turn
_NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_TOO_MANY = b"-ERR [SYS/TEMP] too many connections, try again later\r\n"

Accepted = Callable[[socket.socket, Address], None]


def bind(address: Address) -> list[socket.socket]:
    """Listening sockets for `address`; an empty host is every address, IPv4 and IPv6. Raises OSError."""
    if address.host:
        infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        places = list(dict.fromkeys((info[0], str(info[4][0])) for info in infos))
    else:
        places = [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]  # noqa: S104
    sockets: list[socket.socket] = []
    port = address.port
    for family, host in places:
        try:
            sock = _bind_one(family, host, port)
        except OSError as error:
            if (
                not address.host
                and family == socket.AF_INET6
                and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
            ):
                continue  # a machine without IPv6
            for earlier in sockets:
                earlier.close()
            raise
        sockets.append(sock)
        port = port or sock.getsockname()[1]  # port 0: the same free one for both families
    return sockets


def shape(sock: socket.socket) -> None:
    """Set what the sockets that a listening one accepts inherit."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # before anything is written, see connect()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)


def _bind_one(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        shape(sock)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


class Acceptor:
    """Accepts on one listening socket and calls `accepted(socket, peer)`. `failed` is called for each accept error."""

    def __init__(
        self, reactor: Reactor, sock: socket.socket, accepted: Accepted, failed: Callable[[OSError], None]
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._accepted = accepted
        self._failed = failed
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.address = Address(*sock.getsockname()[:2])
        reactor.watch(sock.fileno(), self, READABLE)

    def ready(self, events: int) -> None:
        """From the reactor."""
        for _ in range(_ACCEPTS):
            if self._sock.fileno() < 0:
                return
            try:
                sock, peer = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTOR:
                    self._turn_away(error)
                    return
                if error.errno != errno.ECONNABORTED:
                    self._failed(error)
                    self._rest()
                    return
                continue
            sock.setblocking(False)
            host = peer[0]
            self._accepted(sock, Address(host[7:] if host.startswith("::ffff:") else host, peer[1]))

    def failed(self) -> None:
        """From the reactor: one connection could not be taken on; its socket is closed with its last reference."""

    def _turn_away(self, error: OSError) -> None:
        """No descriptor left: lend the reserve one to tell the next client, instead of spinning on a full queue."""
        self._failed(error)
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
        turned_away = False
        with contextlib.suppress(OSError):
            sock, _ = self._sock.accept()
            with contextlib.suppress(OSError):
                sock.setblocking(False)
                sock.send(_TOO_MANY)
            sock.close()
            turned_away = True
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if self._reserve is None or not turned_away:
            self._rest()

    def _rest(self) -> None:
        """A second's pause: the queue is level-triggered and would call us again at once, for the same failure."""
        self.pause()
        self._reactor.loop.call_later(1.0, self.resume)

    def pause(self) -> None:
        """Let connections wait in the kernel's queue."""
        if self._sock.fileno() >= 0:
            self._reactor.change(self._sock.fileno(), 0)

    def resume(self) -> None:
        """Accept again."""
        if self._reserve is None:
            with contextlib.suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if self._sock.fileno() >= 0:
            self._reactor.change(self._sock.fileno(), READABLE)

    def close(self) -> None:
        """Refuse new connections."""
        if self._sock.fileno() >= 0:
            self._reactor.forget(self._sock.fileno())
            self._sock.close()
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
