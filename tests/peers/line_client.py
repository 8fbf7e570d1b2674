"""A client that blocks and sees every octet, in clear or under TLS: what the thread of a test needs."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Self

from tests.peers.process import PATIENCE


class LineClient:
    """One connection, a context manager. Nothing is read or sent unasked, not even the greeting."""

    def __init__(
        self, port: int, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", seconds: float = PATIENCE
    ) -> None:
        self.socket = socket.create_connection((host, port), timeout=seconds)
        self._seconds = seconds
        self._received = b""
        if tls is not None:
            self.start_tls(tls)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def start_tls(self, context: ssl.SSLContext) -> None:
        """At once, or after the reply to STLS."""
        assert not self._received, "read in clear what belongs to TLS"
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")

    def send(self, octets: bytes) -> None:
        """Any octets."""
        self.socket.sendall(octets)

    def take(self, count: int) -> bytes:
        """So many octets. EOFError when the connection ends first."""
        while len(self._received) < count:
            self._more()
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def line(self) -> bytes:
        """One line without its CRLF. EOFError when the connection ends first."""
        while b"\r\n" not in self._received:
            self._more()
        line, _, self._received = self._received.partition(b"\r\n")
        return line

    def command(self, line: str | bytes) -> bytes:
        """Sends a command; returns the status line of its reply."""
        self.send((line.encode() if isinstance(line, str) else line) + b"\r\n")
        return self.line()

    def body(self) -> bytes:
        """The rest of a multi-line reply after its status line, with its termination octets."""
        while not self._received.startswith(b".\r\n") and b"\r\n.\r\n" not in self._received:
            self._more()
        end = 3 if self._received.startswith(b".\r\n") else self._received.index(b"\r\n.\r\n") + 5
        body, self._received = self._received[:end], self._received[end:]
        return body

    def rest(self) -> bytes:
        """Everything until the server ends the connection."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                self._more()
        rest, self._received = self._received, b""
        return rest

    def _more(self) -> None:
        piece = self.socket.recv(1 << 16)
        if not piece:
            raise EOFError(self._received[-200:])
        self._received += piece
