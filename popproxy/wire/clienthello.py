"""A look at a TLS ClientHello (RFC 8446 section 4.1.2) before the TLS library sees it.

Python's ssl goes on in silence when client and server share no ALPN protocol, which lets a browser be led to a mail
server (ALPACA, CVE-2021-3618); and which certificate fits is best known before the handshake begins. What the TLS
library judges anyway is not judged here: what this parser needs is checked, the rest is skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from popproxy.errors import RemoteProtocolError

HELLO_LIMIT = 64 * 1024
"""Longest ClientHello taken, in octets, without the headers of its records."""
RECORDS_LIMIT = 128
"""Most TLS records that one ClientHello may be spread over; a drip of tiny ones must not make us rescan thousands."""
NO_APPLICATION_PROTOCOL = b"\x15\x03\x03\x00\x02\x02\x78"
"""Fatal alert 120 (RFC 7301 section 3.2) as a plain record: to be sent instead of a ServerHello."""

_CLIENT_HELLO = 1
_RECORD_HEADER, _MESSAGE_HEADER, _FRAGMENT_LIMIT = 5, 4, 1 << 14
_SERVER_NAME, _ALPN, _SUPPORTED_VERSIONS = 0, 16, 43
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
# the last label is not all digits: IP addresses may not be asked for by SNI (RFC 6066 section 3)
_HOST_NAME = re.compile(rf"(?=.{{1,255}}\Z)(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What the client asks for.

    `server_name` is in lower case, None if there is none or it is no host name; `alpn` None if the extension is absent;
    `versions` the wire numbers on offer (0x0303 = TLS 1.2, 0x0304 = TLS 1.3), GREASE and unknown ones included.
    """

    server_name: str | None
    alpn: tuple[bytes, ...] | None
    versions: tuple[int, ...]


def parse(data: bytes | bytearray) -> ClientHello | None:
    """The ClientHello at the beginning of a connection, or None if more octets are needed.

    Call it again with all octets so far; the hello is copied only once it is complete. Raises RemoteProtocolError
    (reason ``tls``), as early as it is certain, if this is no ClientHello or it is longer than `HELLO_LIMIT`.
    """
    message = _first_message(data)
    return None if message is None else _parse_hello(_Reader(message))


def _first_message(data: bytes | bytearray) -> bytes | None:
    """The body of the ClientHello, put together from its records, or None if it is incomplete."""
    head = b""
    spans: list[tuple[int, int]] = []
    have = position = 0
    while len(spans) < RECORDS_LIMIT:
        length = _record_length(data[position : position + _RECORD_HEADER])
        if length is None:
            return None
        start = position + _RECORD_HEADER
        position = start + length
        stop = min(position, len(data))
        spans.append((start, stop))
        have += stop - start
        head += data[start : min(stop, start + _MESSAGE_HEADER - len(head))]
        if head and head[0] != _CLIENT_HELLO:
            raise _bad("no ClientHello")
        if len(head) == _MESSAGE_HEADER:
            total = _MESSAGE_HEADER + int.from_bytes(head[1:], "big")
            if total > HELLO_LIMIT:
                raise _bad("ClientHello too long")
            if have >= total:
                return b"".join(data[begin:end] for begin, end in spans)[_MESSAGE_HEADER:total]
        if position > len(data):
            return None
    raise _bad("ClientHello in too many records")


def _record_length(header: bytes | bytearray) -> int | None:
    """Octets of the record behind `header`, or None if the header is incomplete."""
    # the minor version says nothing here: OpenSSL writes 03 01 in the first record, others 03 03 (RFC 8446 section 5.1)
    if header[:2] not in (b"", b"\x16", b"\x16\x03"):
        raise _bad("no TLS handshake")
    if len(header) < _RECORD_HEADER:
        return None
    length = int.from_bytes(header[3:], "big")
    if not 0 < length <= _FRAGMENT_LIMIT:
        raise _bad("malformed TLS record")
    return length


class _Reader:
    """Takes fields off the front of a structure; a field that reaches beyond its structure is an error."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._octets)

    def take(self, count: int) -> bytes:
        taken = self._octets[self._at : self._at + count]
        if len(taken) < count:
            raise _bad("malformed ClientHello")
        self._at += count
        return taken

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int) -> bytes:
        """A field that begins with its own length, in `width` octets."""
        return self.take(self.number(width))


def _parse_hello(hello: _Reader) -> ClientHello:
    legacy_version = hello.number(2)
    hello.take(32)  # random
    hello.vector(1)  # legacy session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression methods
    extensions = _extensions(_Reader(hello.vector(2))) if hello else {}
    if hello:
        raise _bad("octets behind the ClientHello's extensions")
    alpn = extensions.get(_ALPN)
    server_name = extensions.get(_SERVER_NAME)
    versions = extensions.get(_SUPPORTED_VERSIONS)
    return ClientHello(
        server_name=None if server_name is None else _server_name(server_name),
        alpn=None if alpn is None else _alpn(alpn),
        versions=(legacy_version,) if versions is None else _versions(versions),
    )


def _extensions(reader: _Reader) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while reader:
        kind = reader.number(2)
        if kind in found:  # RFC 8446 section 4.2; two readers might believe different ones
            raise _bad("an extension twice in the ClientHello")
        found[kind] = reader.vector(2)
    return found


def _only_vector(octets: bytes, width: int) -> _Reader:
    """The reader of a vector that is all there is in `octets`."""
    reader = _Reader(octets)
    vector = reader.vector(width)
    if reader or not vector:
        raise _bad("malformed extension in the ClientHello")
    return _Reader(vector)


def _alpn(extension: bytes) -> tuple[bytes, ...]:
    reader = _only_vector(extension, 2)
    names = []
    while reader:
        name = reader.vector(1)
        if not name:
            raise _bad("empty protocol name in the ClientHello")
        names.append(name)
    return tuple(names)


def _versions(extension: bytes) -> tuple[int, ...]:
    reader = _only_vector(extension, 1)
    versions = []
    while reader:
        versions.append(reader.number(2))
    return tuple(versions)


def _server_name(extension: bytes) -> str | None:
    reader = _only_vector(extension, 2)
    kind, name = reader.number(1), reader.vector(2)
    text = name.decode("latin-1").lower()
    return text if kind == 0 and not reader and _HOST_NAME.fullmatch(text) else None


def _bad(text: str) -> RemoteProtocolError:
    return RemoteProtocolError(text, reason="tls")
