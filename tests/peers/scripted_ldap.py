"""An LDAP server that answers what the test says: lies, halves, garbage, nothing. Enough BER for that, and no more."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

BIND, SEARCH, EXTENDED, UNBIND = 0x60, 0x63, 0x77, 0x42
BIND_RESPONSE, ENTRY, SEARCH_DONE, EXTENDED_RESPONSE = 0x61, 0x64, 0x65, 0x78

Answer = Callable[["Request"], bytes | None]
"""What to answer; None: close the connection."""


class Request:
    """What a client sent."""

    def __init__(self, number: int, operation: int, body: bytes) -> None:
        self.number = number
        self.operation = operation
        self.body = body

    @property
    def bind_name(self) -> bytes:
        """Of a bind: version, name, authentication."""
        _, rest = _take(self.body)
        return _take(rest)[0][1]


def tlv(tag: int, value: bytes) -> bytes:
    """A BER element."""
    size = len(value)
    length = bytes([size]) if size < 0x80 else b"\x84" + size.to_bytes(4, "big")
    return bytes([tag]) + length + value


def message(number: int, operation: int, body: bytes) -> bytes:
    """An LDAPMessage."""
    return tlv(0x30, tlv(0x02, number.to_bytes(4, "big")) + tlv(operation, body))


def result(request: Request, operation: int, code: int, diagnostic: bytes = b"") -> bytes:
    """An LDAPResult."""
    return message(request.number, operation, tlv(0x0A, bytes([code])) + tlv(0x04, b"") + tlv(0x04, diagnostic))


def bind_result(request: Request, code: int = 0, diagnostic: bytes = b"") -> bytes:
    """The answer to a bind."""
    return result(request, BIND_RESPONSE, code, diagnostic)


def entry(request: Request, name: bytes, **attributes: bytes) -> bytes:
    """A SearchResultEntry."""
    pairs = b"".join(
        tlv(0x30, tlv(0x04, attribute.encode()) + tlv(0x31, tlv(0x04, held))) for attribute, held in attributes.items()
    )
    return message(request.number, ENTRY, tlv(0x04, name) + tlv(0x30, pairs))


def search_done(request: Request, code: int = 0) -> bytes:
    """The end of a search."""
    return result(request, SEARCH_DONE, code)


def _take(data: bytes) -> tuple[tuple[int, bytes], bytes]:
    """The first element of `data`, and the rest. Raises IndexError if it is not there in full."""
    tag, size, at = data[0], data[1], 2
    if size & 0x80:
        at += size & 0x7F
        size = int.from_bytes(data[2:at], "big")
    if len(data) < at + size:
        raise IndexError
    return (tag, data[at : at + size]), data[at + size :]


class ScriptedLdap:
    """Listens on `port`; keeps every request in `requests`. `answer` may be replaced at any time."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Ends the listener and every connection."""
        for sock in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        data = b""
        with contextlib.suppress(OSError), connection:
            while received := connection.recv(65536):
                data += received
                with contextlib.suppress(IndexError):
                    while True:
                        (_, body), data = _take(data)
                        (_, number), rest = _take(body)
                        (operation, inner), _ = _take(rest)
                        request = Request(int.from_bytes(number, "big"), operation, inner)
                        self.requests.append(request)
                        answer = b"" if operation == UNBIND else self.answer(request)
                        if answer is None:
                            return
                        connection.sendall(answer)


@contextlib.contextmanager
def scripted_ldap(answer: Answer) -> Iterator[ScriptedLdap]:
    """A scripted LDAP server for the length of a with statement."""
    server = ScriptedLdap(answer)
    try:
        yield server
    finally:
        server.close()
