"""The PROXY protocol, versions 1 and 2 (HAProxy's ``proxy-protocol.txt``): who is behind a load balancer.

A header is believed only from a peer that is configured as trusted, and then it is compulsory; both are the caller's to
see to. Here the octets are judged, strictly: what a lenient reader lets pass becomes somebody's forged address.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Literal

from popproxy.errors import RemoteProtocolError
from popproxy.types import Address
from popproxy.wire.visitor import Visitor

V1_LIMIT = 107
"""Longest version 1 header in octets, CRLF included (section 2.1)."""
V2_LIMIT = 4096
"""Longest version 2 header taken, in octets; the format would allow 64 KiB, real ones stay below 1 KiB."""
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"

_V1_START = b"PROXY "
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [\x20-\x7e]*)?")  # what follows must be ignored
_V1_TCP = re.compile(rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})")

_LOCAL, _PROXY = 0, 1
_ADDRESS_OCTETS = {0x00: 0, 0x11: 12, 0x21: 36, 0x31: 216}
"""Family and transport → octets of the address block. Only streams: POP3 does not come in datagrams."""
_FIXED = 16
_TLV_CRC32C, _TLV_UNIQUE_ID, _TLV_SSL = 0x03, 0x05, 0x20

Version = Literal["v1", "v2"]


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a header says. `local`: the balancer speaks for itself (a health check).

    `source` and `destination` are the client's connection to the balancer; both None if the header does not tell
    (LOCAL, UNKNOWN, UNSPEC, AF_UNIX): then the real endpoints count. IPv4 mapped into IPv6 is given as IPv4.
    """

    local: bool
    source: Address | None = None
    destination: Address | None = None


class ProxyHeaderParser:
    """Reads one header off the beginning of a connection.

    Feed it until `result` is set; `rest` then holds the octets behind the header. Cheap at any segmentation.
    """

    def __init__(self) -> None:
        self.result: ProxyHeader | None = None
        self._buffer = bytearray()

    @property
    def rest(self) -> bytes:
        """Octets behind the header, b"" until there is a result."""
        return bytes(self._buffer) if self.result else b""

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take octets from the peer. Raises RemoteProtocolError (reason ``proxy_header``), as soon as it is certain."""
        self._buffer += data
        if self.result is not None:
            return
        if self._buffer.startswith(SIGNATURE[: len(self._buffer)]):
            self._version_2()
        elif self._buffer.startswith(_V1_START[: len(self._buffer)]):
            self._version_1()
        else:
            raise _bad("no PROXY header")

    def _version_1(self) -> None:
        end = self._buffer.find(b"\n", 0, V1_LIMIT)
        if end >= 0:
            self._finish(end + 1, _parse_v1(bytes(self._buffer[: end + 1])))
        elif len(self._buffer) >= V1_LIMIT:
            raise _bad("endless PROXY line")

    def _version_2(self) -> None:
        if len(self._buffer) < _FIXED:
            return
        if self._buffer[12] not in (0x20 | _LOCAL, 0x20 | _PROXY):
            raise _bad("unknown version or command in the PROXY header")
        total = _FIXED + int.from_bytes(self._buffer[14:16], "big")
        if total > V2_LIMIT:
            raise _bad("PROXY header too long")
        if len(self._buffer) >= total:
            self._finish(total, _parse_v2(bytes(self._buffer[:total])))

    def _finish(self, length: int, result: ProxyHeader) -> None:
        del self._buffer[:length]
        self.result = result


def introduce(version: Version, visitor: Visitor | None) -> bytes:
    """The header that tells a server who the client is; None: that we come for ourselves, to see whether it works.

    Version 2 also says our name for the session (PP2_TYPE_UNIQUE_ID, section 2.2.5). It says nothing of TLS: a server
    would take that for the protection of its own link.
    """
    if visitor is None:
        return encode_v1() if version == "v1" else encode_v2(local=True)
    source, destination = visitor.source, visitor.destination
    hosts = [address.host.partition("%")[0] for address in (source, destination)]
    if len({":" in host for host in hosts}) > 1:  # the client has come by a proxy that speaks the other IP with us
        hosts = [host if ":" in host else f"::ffff:{host}" for host in hosts]
    source, destination = Address(hosts[0], source.port), Address(hosts[1], destination.port)
    if version == "v1":
        return encode_v1(source, destination)
    return encode_v2(source, destination, tlvs=((_TLV_UNIQUE_ID, visitor.session.encode("ascii")),))


def encode_v1(source: Address | None = None, destination: Address | None = None) -> bytes:
    """A version 1 header; UNKNOWN without addresses. Raises ValueError unless both are of one family."""
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n"
    _pack(source, destination)  # are they what they should be?
    family = 6 if ":" in source.host else 4
    ends = f"{source.host} {destination.host} {source.port} {destination.port}"
    return f"PROXY TCP{family} {ends}\r\n".encode("ascii")


def encode_v2(
    source: Address | None = None,
    destination: Address | None = None,
    *,
    local: bool = False,
    tlvs: tuple[tuple[int, bytes], ...] = (),
    crc: bool = False,
) -> bytes:
    """A version 2 header, UNSPEC without addresses; `crc` adds a CRC32C. Raises ValueError for mixed families."""
    family, addresses = 0x00, b""
    if source is not None and destination is not None:
        addresses = _pack(source, destination)
        family = 0x11 if len(addresses) == _ADDRESS_OCTETS[0x11] else 0x21
    extra = b"".join(struct.pack(">BH", kind, len(value)) + value for kind, value in tlvs)
    checksum = struct.pack(">BHI", _TLV_CRC32C, 4, 0) if crc else b""
    command = _LOCAL if local else _PROXY
    length = len(addresses) + len(extra) + len(checksum)
    header = SIGNATURE + struct.pack(">BBH", 0x20 | command, family, length) + addresses + extra + checksum
    return header[:-4] + crc32c(header).to_bytes(4, "big") if crc else header


def _pack(source: Address, destination: Address) -> bytes:
    """The address block of version 2. Raises ValueError for mixed families and malformed addresses."""
    kind = IPv6Address if ":" in source.host else IPv4Address
    ports = struct.pack(">HH", source.port, destination.port)
    return kind(source.host).packed + kind(destination.host).packed + ports


# ---- version 1 ----


def _parse_v1(line: bytes) -> ProxyHeader:
    if not line.endswith(b"\r\n"):
        raise _bad("PROXY line without CRLF")
    line = line[:-2]
    if _V1_UNKNOWN.fullmatch(line):
        return ProxyHeader(local=False)
    match = _V1_TCP.fullmatch(line)
    if match is None:
        raise _bad("malformed PROXY line")
    family, source, destination, source_port, destination_port = (group.decode("ascii") for group in match.groups())
    kind = IPv4Address if family == "4" else IPv6Address
    try:
        hosts = kind(source), kind(destination)
    except AddressValueError:
        raise _bad("malformed address in the PROXY line") from None
    ports = int(source_port), int(destination_port)
    if max(ports) > 0xFFFF:
        raise _bad("malformed port in the PROXY line")
    return ProxyHeader(False, _address(hosts[0], ports[0]), _address(hosts[1], ports[1]))


def _address(host: IPv4Address | IPv6Address, port: int) -> Address:
    mapped = host.ipv4_mapped if isinstance(host, IPv6Address) else None
    return Address(str(mapped or host), port)


# ---- version 2 ----


def _parse_v2(header: bytes) -> ProxyHeader:
    command, family = header[12] & 0x0F, header[13]
    if command == _LOCAL:
        return ProxyHeader(local=True)  # section 2.2: the block behind it is to be discarded, whatever it holds
    octets = _ADDRESS_OCTETS.get(family)
    if octets is None:
        raise _bad("unknown address family or transport in the PROXY header")
    block, extra = header[_FIXED : _FIXED + octets], header[_FIXED + octets :]
    if len(block) < octets:
        raise _bad("PROXY header too short for its addresses")
    if family == 0x00:
        return ProxyHeader(local=False)  # the length is all that has a meaning then
    _check_tlvs(extra, header)
    if family == 0x11:
        source, destination, *ports = struct.unpack(">4s4sHH", block)
        return ProxyHeader(False, Address(_ipv4(source), ports[0]), Address(_ipv4(destination), ports[1]))
    if family == 0x21:
        source, destination, *ports = struct.unpack(">16s16sHH", block)
        hosts = IPv6Address(source), IPv6Address(destination)
        return ProxyHeader(False, _address(hosts[0], ports[0]), _address(hosts[1], ports[1]))
    return ProxyHeader(local=False)


def _ipv4(packed: bytes) -> str:
    return str(IPv4Address(packed))


def _check_tlvs(extra: bytes, header: bytes) -> None:
    """Every TLV must lie within the header, and the checksum, if there is one, must be right (section 2.2.3)."""
    checked = False
    for kind, start, value in _tlvs(extra, 0):
        if kind == _TLV_CRC32C:
            at = len(header) - len(extra) + start
            blanked = header[:at] + bytes(4) + header[at + 4 :]
            if checked or len(value) != 4 or int.from_bytes(value, "big") != crc32c(blanked):
                raise _bad("wrong checksum in the PROXY header")
            checked = True
        elif kind == _TLV_SSL:
            for _ in _tlvs(value, 5):  # client flags (1) and verification result (4) come before its own TLVs
                pass
        elif kind == _TLV_UNIQUE_ID and len(value) > 128:
            raise _bad("overlong unique id in the PROXY header")


def _tlvs(octets: bytes, start: int) -> list[tuple[int, int, bytes]]:
    """Type, offset of the value and value of each TLV in ``octets[start:]``."""
    found = []
    if len(octets) < start:
        raise _bad("truncated TLV in the PROXY header")
    while start < len(octets):
        value = start + 3
        stop = value + int.from_bytes(octets[start + 1 : value], "big")
        if value > len(octets) or stop > len(octets):
            raise _bad("truncated TLV in the PROXY header")
        found.append((octets[start], value, octets[value:stop]))
        start = stop
    return found


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for octet in range(256):
        for _ in range(8):
            octet = octet >> 1 ^ (0x82F63B78 if octet & 1 else 0)  # noqa: PLW2901
        table.append(octet)
    return tuple(table)


_CRC32C = _crc32c_table()


def crc32c(octets: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4)."""
    crc = 0xFFFFFFFF
    for octet in octets:
        crc = crc >> 8 ^ _CRC32C[(crc ^ octet) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _bad(text: str) -> RemoteProtocolError:
    return RemoteProtocolError(text, reason="proxy_header")
