"""A blocking POP3 client on a raw socket: it pipelines, drops connections, and remembers the dialogue."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

from popproxy.types import Address, Secret

TIMEOUT_SECONDS = 20.0


class Layer(Protocol):
    """Protects what goes over the socket: GssLayer."""

    def encode(self, data: bytes) -> bytes:
        """Octets for the wire."""
        ...

    def decode(self, data: bytes) -> list[bytes]:
        """Octets from the wire: those that are complete."""
        ...


_RECEIVE = 65536
_TIMESTAMP = re.compile(rb"<[^<>]+>")


class MismatchError(Exception):
    """Something was not as it should be; the text says what differed, without any secret."""


class Client:
    """One connection. `transcript` holds the dialogue, abbreviated and without secrets, a line per element."""

    def __init__(
        self,
        address: Address,
        ca: Path | None,
        implicit_tls: bool = False,
        first: Callable[[Client], None] | None = None,
        transcript: list[str] | None = None,
    ) -> None:
        """Connect and read the greeting; what must come before it is done by `first`.

        `ca` is to be trusted instead of the system's authorities. Raises OSError, ssl.SSLError, MismatchError.
        """
        self.transcript: list[str] = [] if transcript is None else transcript
        self._layer: Layer | None = None
        self._context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        self._buffer = b""
        self._socket = socket.create_connection((address.host, address.port), timeout=TIMEOUT_SECONDS)
        self.port: int = self._socket.getsockname()[1]
        if implicit_tls:
            self._start_tls()
        if first is not None:
            first(self)
        self.greeting = self.expect(b"+OK")

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, *commands: str) -> None:
        """Send `commands` in one segment (pipelined, RFC 2449 section 6.8)."""
        shown = [_without_secret(command) for command in commands]
        self.transcript.append("C: " + (shown[0] if len(shown) == 1 else f"{shown[0]} ... {shown[-1]}  (pipelined)"))
        self.send_octets("".join(f"{command}\r\n" for command in commands).encode())

    def send_octets(self, octets: bytes) -> None:
        """Send what is no command line."""
        self._socket.sendall(octets if self._layer is None else self._layer.encode(octets))

    def take(self, count: int) -> bytes:
        """The next octets, whatever they are."""
        while len(self._buffer) < count:
            self._receive()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def start_layer(self, layer: Layer) -> None:
        """From here on everything is inside a security layer."""
        if self._buffer:
            raise MismatchError("the proxy sent more than one line before the security layer")
        self._layer = layer

    def line(self) -> bytes:
        """The next line without CRLF. Raises MismatchError at the end of the connection."""
        while b"\r\n" not in self._buffer:
            self._receive()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def expect(self, start: bytes) -> bytes:
        """The next line, which must begin with `start`."""
        line = self.line()
        self.transcript.append(f"S: {_shown(line)}")
        if not line.startswith(start):
            raise MismatchError(f"expected {start.decode()}, got {_shown(line)}")
        return line

    def ask(self, command: str, start: bytes = b"+OK") -> bytes:
        """Send one command; its reply must begin with `start`."""
        self.send(command)
        return self.expect(start)

    def body(self) -> bytes:
        """The rest of a multi-line reply without its stuffing and its final dot (RFC 1939 section 3)."""
        while not (self._buffer.startswith(b".\r\n") or b"\r\n.\r\n" in self._buffer):
            self._receive()
        if self._buffer.startswith(b".\r\n"):
            stuffed, self._buffer = b"", self._buffer[3:]
        else:
            stuffed, _, self._buffer = self._buffer.partition(b"\r\n.\r\n")
            stuffed += b"\r\n"
        self.transcript.append(f"S: ... {len(stuffed)} octets and a dot")
        return (b"\r\n" + stuffed).replace(b"\r\n..", b"\r\n.")[2:]

    def capabilities(self) -> list[str]:
        """The lines of CAPA."""
        self.ask("CAPA")
        return self.body().decode("ascii", "replace").splitlines()

    def stls(self) -> None:
        """Raise the connection to TLS (RFC 2595 section 4), verifying the certificate."""
        self.ask("STLS")
        if self._buffer:
            raise MismatchError("the proxy sent more than one line before the TLS handshake")
        self._start_tls()

    def log_in(self, user: str, password: Secret) -> None:
        """USER and PASS; both must succeed."""
        self.ask(f"USER {user}")
        self.ask(f"PASS {password.reveal().decode()}")

    def apop(self, user: str, secret: Secret) -> None:
        """APOP with the timestamp of the greeting (RFC 1939 section 7); must succeed."""
        found = _TIMESTAMP.search(self.greeting)
        if found is None:
            raise MismatchError("the greeting has no timestamp for APOP")
        digest = hashlib.md5(found[0] + secret.reveal(), usedforsecurity=False).hexdigest()
        self.ask(f"APOP {user} {digest}")

    def drop(self) -> None:
        """Break the connection off with a reset, as a phone that loses its network."""
        self.transcript.append("C: (connection lost)")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if isinstance(self._socket, ssl.SSLSocket):
            socket.socket(fileno=self._socket.detach()).close()
        else:
            self._socket.close()

    def ended(self) -> None:
        """The proxy must now close the connection without another octet."""
        try:
            rest = self._buffer or self._socket.recv(1)
        except (ConnectionError, ssl.SSLError):
            rest = b""
        if rest:
            raise MismatchError("the connection should have ended")

    def _start_tls(self) -> None:
        self._socket = self._context.wrap_socket(self._socket, server_hostname="localhost")
        self.transcript.append(f"   ({self._socket.version()}, certificate verified)")

    def _receive(self) -> None:
        octets = self._socket.recv(_RECEIVE)
        if not octets:
            raise MismatchError("the proxy closed the connection")
        self._buffer += octets if self._layer is None else b"".join(self._layer.decode(octets))


def _without_secret(command: str) -> str:
    words = command.split(" ")
    kept = {"PASS": 1, "APOP": 2, "AUTH": 2}.get(words[0].upper(), len(words))
    return " ".join([*words[:kept], *(["****"] if len(words) > kept else [])])


def _shown(line: bytes) -> str:
    text = line.decode("ascii", "backslashreplace")
    return text if len(text) <= 70 else f"{text[:67]}..."
