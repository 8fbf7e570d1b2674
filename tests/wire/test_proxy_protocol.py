"""PROXY headers: what HAProxy writes is understood at any segmentation, and everything else is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.errors import RemoteProtocolError
from popproxy.types import Address, SessionId
from popproxy.wire.proxy_protocol import (
    SIGNATURE,
    V1_LIMIT,
    V2_LIMIT,
    ProxyHeader,
    ProxyHeaderParser,
    crc32c,
    encode_v1,
    encode_v2,
    introduce,
)
from popproxy.wire.visitor import Visitor

CLIENT, SERVER = Address("192.0.2.7", 40000), Address("198.51.100.1", 110)
CLIENT6, SERVER6 = Address("2001:db8::7", 40000), Address("2001:db8::1", 110)

ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6).map(str).filter(lambda host: not host.startswith("::ffff:"))
ports = st.integers(0, 65535)


@st.composite
def endpoints(draw: st.DrawFn) -> tuple[Address, Address]:
    hosts = draw(st.sampled_from([ipv4, ipv6]))
    return Address(draw(hosts), draw(ports)), Address(draw(hosts), draw(ports))


def read(octets: bytes) -> ProxyHeaderParser:
    parser = ProxyHeaderParser()
    parser.feed(octets)
    return parser


def read_drip(octets: bytes) -> ProxyHeaderParser:
    parser = ProxyHeaderParser()
    for octet in octets:
        parser.feed(bytes([octet]))
    return parser


@given(endpoints(), st.binary(max_size=30), st.data())
def test_what_we_encode_is_read_back_at_any_split(
    ends: tuple[Address, Address], rest: bytes, data: st.DataObject
) -> None:
    source, destination = ends
    tlvs = ((0x02, b"mail.example.org"), (0x04, b"\0" * 5))
    for header in (
        encode_v1(source, destination),
        encode_v2(source, destination),
        encode_v2(source, destination, tlvs=tlvs, crc=True),
    ):
        stream = header + rest
        cut = data.draw(st.integers(0, len(stream)))
        parser = ProxyHeaderParser()
        parser.feed(stream[:cut])
        assert (parser.result is not None) == (cut >= len(header))
        assert parser.rest == stream[len(header) : cut]
        parser.feed(memoryview(stream)[cut:])
        assert parser.result == ProxyHeader(False, source, destination)
        assert parser.rest == rest


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\x00"])
)
def test_any_octets_give_the_same_verdict_at_once_and_one_by_one(noise: bytes, start: bytes) -> None:
    verdicts: list[object] = []
    for way in (read, read_drip):
        try:
            parser = way(start + noise)
            verdicts.append((parser.result, parser.rest))
        except RemoteProtocolError as error:
            verdicts.append(error.reason)
    assert verdicts[0] == verdicts[1]
    assert verdicts[0] == "proxy_header" or isinstance(verdicts[0], tuple)


@pytest.mark.parametrize(
    ("line", "result"),
    [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 110\r\n", ProxyHeader(False, CLIENT, SERVER)),
        (b"PROXY TCP6 2001:db8::7 2001:DB8::1 40000 110\r\n", ProxyHeader(False, CLIENT6, SERVER6)),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 40000 110\r\n", ProxyHeader(False, CLIENT, SERVER)),
        (
            b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n",
            ProxyHeader(False, Address("0.0.0.0", 0), Address("255.255.255.255", 65535)),
        ),
        (b"PROXY UNKNOWN\r\n", ProxyHeader(False)),
        (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", ProxyHeader(False)),
        (b"PROXY UNKNOWN " + b"x" * (V1_LIMIT - 16) + b"\r\n", ProxyHeader(False)),
    ],
)
def test_version_1(line: bytes, result: ProxyHeader) -> None:
    parser = read(line + b"USER a\r\n")
    assert (parser.result, parser.rest) == (result, b"USER a\r\n")


@pytest.mark.parametrize(
    "line",
    [
        b"USER alice\r\n",
        b"\r\n\r\n\r\n",
        b"proxy TCP4 192.0.2.7 198.51.100.1 40000 110\r\n",
        b"PROXY\r\n",
        b"PROXY  TCP4 192.0.2.7 198.51.100.1 40000 110\r\n",
        b"PROXY TCP5 192.0.2.7 198.51.100.1 40000 110\r\n",
        b"PROXY UDP4 192.0.2.7 198.51.100.1 40000 110\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 110 \r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 110 9\r\n",
        b"PROXY TCP4 192.0.2.7  198.51.100.1 40000 110\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 110\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 110\r\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 65536\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 99999\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 040000 110\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 +4000 110\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 -1 110\r\n",
        b"PROXY TCP4 192.0.2.256 198.51.100.1 40000 110\r\n",
        b"PROXY TCP4 192.0.02.7 198.51.100.1 40000 110\r\n",
        b"PROXY TCP4 192.0.2 198.51.100.1 40000 110\r\n",
        b"PROXY TCP4 0xc0000207 198.51.100.1 40000 110\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 40000 110\r\n",
        b"PROXY TCP6 192.0.2.7 198.51.100.1 40000 110\r\n",
        b"PROXY TCP6 fe80::1%eth0 2001:db8::1 40000 110\r\n",
        b"PROXY TCP6 2001:db8:::7 2001:db8::1 40000 110\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 \xd9\xa1 110\r\n",
        b"PROXY UNKNOWNX\r\n",
        b"PROXY UNKNOWN \x00\r\n",
        b"PROXY UNKNOWN " + b"x" * (V1_LIMIT - 15) + b"\r\n",
        b"PROXY UNKNOWN " + b"x" * V1_LIMIT,
    ],
)
def test_a_malformed_version_1_header_is_refused(line: bytes) -> None:
    for way in (read, read_drip):
        with pytest.raises(RemoteProtocolError) as caught:
            way(line)
        assert caught.value.reason == "proxy_header"


def test_an_unfinished_header_is_no_result() -> None:
    for octets in (b"", b"P", b"PROXY TCP4 192.0.2.7", b"\r\n", SIGNATURE, encode_v2(CLIENT, SERVER)[:-1]):
        assert read(octets).result is None
        assert read(octets).rest == b""


def test_garbage_is_refused_at_its_first_wrong_octet() -> None:
    parser = ProxyHeaderParser()
    parser.feed(b"PR")
    with pytest.raises(RemoteProtocolError):
        parser.feed(b"E")


# ---- version 2 ----


def v2(version_command: int, family: int, block: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack(">BBH", version_command, family, len(block) if length is None else length) + block


INET = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + struct.pack(">HH", 40000, 110)
INET6 = bytes.fromhex("20010db800000000000000000000000720010db8000000000000000000000001") + struct.pack(
    ">HH", 40000, 110
)
MAPPED = bytes(10) + b"\xff\xff" + INET[:4] + bytes(10) + b"\xff\xff" + INET[4:8] + INET[8:]
SSL_TLV = b"\x20\x00\x0f" + b"\x07\0\0\0\0" + b"\x21\x00\x07TLSv1.3"


@pytest.mark.parametrize(
    ("header", "result"),
    [
        (v2(0x21, 0x11, INET), ProxyHeader(False, CLIENT, SERVER)),
        (v2(0x21, 0x21, INET6), ProxyHeader(False, CLIENT6, SERVER6)),
        (v2(0x21, 0x21, MAPPED), ProxyHeader(False, CLIENT, SERVER)),
        (v2(0x21, 0x31, bytes(216)), ProxyHeader(False)),
        (v2(0x21, 0x00, b""), ProxyHeader(False)),
        (v2(0x21, 0x00, b"whatever"), ProxyHeader(False)),
        (v2(0x20, 0x00, b""), ProxyHeader(True)),
        (v2(0x20, 0x11, INET), ProxyHeader(True)),
        (v2(0x20, 0xFF, b"whatever"), ProxyHeader(True)),
        (v2(0x21, 0x11, INET + SSL_TLV), ProxyHeader(False, CLIENT, SERVER)),
        (v2(0x21, 0x11, INET + b"\xea\x00\x00"), ProxyHeader(False, CLIENT, SERVER)),
        (v2(0x21, 0x11, INET + b"\x05\x00\x80" + b"u" * 128), ProxyHeader(False, CLIENT, SERVER)),
        (v2(0x21, 0x11, INET + b"\x04\x0f\xe1" + bytes(V2_LIMIT - 31)), ProxyHeader(False, CLIENT, SERVER)),
    ],
)
def test_version_2(header: bytes, result: ProxyHeader) -> None:
    for way in (read, read_drip):
        parser = way(header + b"\x16\x03\x01")
        assert (parser.result, parser.rest) == (result, b"\x16\x03\x01")


@pytest.mark.parametrize(
    "header",
    [
        v2(0x11, 0x11, INET),  # version 1 in a version 2 header
        v2(0x31, 0x11, INET),
        v2(0x22, 0x11, INET),  # neither LOCAL nor PROXY
        v2(0x21, 0x12, INET),  # datagrams
        v2(0x21, 0x10, INET),
        v2(0x21, 0x41, INET),
        v2(0x21, 0x11, INET[:-1]),
        v2(0x21, 0x21, INET),
        v2(0x21, 0x31, bytes(215)),
        v2(0x21, 0x11, INET, V2_LIMIT),
        v2(0x21, 0x11, INET, 0xFFFF),
        v2(0x21, 0x11, INET + b"\x04"),
        v2(0x21, 0x11, INET + b"\x04\x00"),
        v2(0x21, 0x11, INET + b"\x04\x00\x01"),
        v2(0x21, 0x11, INET + b"\x04\xff\xff" + b"x"),
        v2(0x21, 0x11, INET + b"\x20\x00\x04\x07\0\0\0"),
        v2(0x21, 0x11, INET + b"\x20\x00\x08\x07\0\0\0\0\x21\x00\x01"),
        v2(0x21, 0x11, INET + b"\x05\x00\x81" + b"u" * 129),
        v2(0x21, 0x11, INET + b"\x03\x00\x04\0\0\0\0"),
        v2(0x21, 0x11, INET + b"\x03\x00\x03\0\0\0"),
        SIGNATURE[:-1] + b"\r",
    ],
)
def test_a_malformed_version_2_header_is_refused(header: bytes) -> None:
    for way in (read, read_drip):
        with pytest.raises(RemoteProtocolError) as caught:
            way(header)
        assert caught.value.reason == "proxy_header"


def test_the_checksum_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the catalogue of parametrised CRC algorithms
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720 appendix B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


@given(st.integers(0, 8 * 48 - 1).filter(lambda bit: bit // 8 != 41))  # octet 41 is what says that this is a checksum
def test_a_flipped_bit_is_seen_by_the_checksum(bit: int) -> None:
    header = bytearray(encode_v2(CLIENT, SERVER, tlvs=((0x02, b"mail.e.org"),), crc=True))
    assert len(header) == 16 + 12 + 13 + 7
    header[bit // 8] ^= 1 << bit % 8
    try:
        result = read(bytes(header)).result
    except RemoteProtocolError:
        return
    assert result in (None, ProxyHeader(True)), "LOCAL discards the block, a longer length waits for more"


def test_two_checksums_are_refused() -> None:
    first = b"\x03\x00\x04" + crc32c(v2(0x21, 0x11, INET + b"\x03\x00\x04\0\0\0\0" * 2)).to_bytes(4, "big")
    with pytest.raises(RemoteProtocolError):
        read(v2(0x21, 0x11, INET + first * 2))


def test_addresses_of_two_families_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="::1"):
        encode_v1(CLIENT, Address("::1", 1))
    with pytest.raises(ValueError, match="::1"):
        encode_v2(CLIENT, Address("::1", 1))
    assert encode_v1() == b"PROXY UNKNOWN\r\n"
    assert read(encode_v2(local=True)).result == ProxyHeader(True)
    assert read(encode_v2()).result == ProxyHeader(False)


@pytest.mark.parametrize(
    ("source", "destination", "heard"),
    [
        ("192.0.2.1", "198.51.100.2", ("192.0.2.1", "198.51.100.2")),
        ("2001:db8::1", "2001:db8::2", ("2001:db8::1", "2001:db8::2")),
        ("2001:db8::1", "198.51.100.2", ("2001:db8::1", "198.51.100.2")),  # told of by somebody who speaks IPv4 with us
        ("192.0.2.1", "2001:db8::2", ("192.0.2.1", "2001:db8::2")),
        ("fe80::1%eth0", "fe80::2%eth0", ("fe80::1", "fe80::2")),
    ],
)
def test_clients_are_introduced_in_either_version(source: str, destination: str, heard: tuple[str, str]) -> None:
    visitor = Visitor(Address(source, 40_000), Address(destination, 110), SessionId("dc92af40c059a068"))
    for header in (introduce("v1", visitor), introduce("v2", visitor)):
        parser = ProxyHeaderParser()
        parser.feed(header + b"STLS\r\n")
        assert parser.result == ProxyHeader(False, Address(heard[0], 40_000), Address(heard[1], 110))
        assert parser.rest == b"STLS\r\n"
    assert introduce("v2", visitor).endswith(b"\x05\x00\x10dc92af40c059a068")


def test_what_we_ask_for_ourselves_is_in_nobodys_name() -> None:
    for header, local in ((introduce("v1", None), False), (introduce("v2", None), True)):
        parser = ProxyHeaderParser()
        parser.feed(header)
        assert parser.result == ProxyHeader(local)
