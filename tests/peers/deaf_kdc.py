"""A host that takes every packet for the KDC, by UDP and by TCP, and never answers."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class DeafKdc:
    """Listens on `port` of the loopback address. `datagrams` and `connections` count what has come."""

    def __init__(self, port: int) -> None:
        self.datagrams = 0
        self.connections = 0
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", port))
        self._tcp = socket.create_server(("127.0.0.1", port), backlog=100)
        self._taken: list[socket.socket] = []
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._hear, self._accept)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Give the port back; connections are reset."""
        with contextlib.suppress(OSError):
            self._tcp.shutdown(socket.SHUT_RDWR)  # wakes the thread
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._udp.getsockname())
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        for sock in (self._udp, self._tcp, *self._taken):
            sock.close()

    def _hear(self) -> None:
        while True:
            packet = self._udp.recv(65536)
            if not packet:
                return
            self.datagrams += 1

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._taken.append(self._tcp.accept()[0])
                self.connections += 1


@contextlib.contextmanager
def deaf_kdc(port: int) -> Iterator[DeafKdc]:
    """For the length of a with statement; the KDC that listened there has to be stopped before."""
    it = DeafKdc(port)
    try:
        yield it
    finally:
        it.close()
