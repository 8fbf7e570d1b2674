"""ClientHellos: what OpenSSL writes is read at every split, and hostile ones are refused early."""

from __future__ import annotations

import ssl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.errors import RemoteProtocolError
from popproxy.wire.clienthello import HELLO_LIMIT, NO_APPLICATION_PROTOCOL, RECORDS_LIMIT, ClientHello, parse

HANDSHAKE = 22


def openssl_hello(
    server_name: str | None = None,
    alpn: list[str] | None = None,
    lowest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    highest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> bytes:
    """The first octets of Python's own client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version, context.maximum_version = lowest, highest
    if alpn is not None:
        context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=server_name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def records(message: bytes, size: int = 1 << 14) -> bytes:
    """A handshake message in records of `size` octets."""
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(struct.pack(">BHH", HANDSHAKE, 0x0301, len(part)) + part for part in parts)


def hello(extensions: bytes | None = b"", *, session: bytes = b"", trailer: bytes = b"") -> bytes:
    """A ClientHello message by hand. `extensions` None: the field is absent, as in hellos older than TLS 1.2."""
    body = b"\x03\x03" + bytes(32) + bytes([len(session)]) + session + b"\x00\x02\x13\x01" + b"\x01\x00"
    if extensions is not None:
        body += struct.pack(">H", len(extensions)) + extensions
    body += trailer
    return b"\x01" + len(body).to_bytes(3, "big") + body


def extension(kind: int, value: bytes) -> bytes:
    return struct.pack(">HH", kind, len(value)) + value


def server_name(host: bytes, kind: int = 0) -> bytes:
    entry = struct.pack(">BH", kind, len(host)) + host
    return extension(0, struct.pack(">H", len(entry)) + entry)


def alpn(*names: bytes) -> bytes:
    listed = b"".join(bytes([len(name)]) + name for name in names)
    return extension(16, struct.pack(">H", len(listed)) + listed)


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (openssl_hello(), ClientHello(None, None, (0x0304, 0x0303))),
        (openssl_hello("mail.example.org"), ClientHello("mail.example.org", None, (0x0304, 0x0303))),
        (openssl_hello("Mail.Example.ORG", ["pop3"]), ClientHello("mail.example.org", (b"pop3",), (0x0304, 0x0303))),
        (openssl_hello(None, ["h2", "http/1.1"]), ClientHello(None, (b"h2", b"http/1.1"), (0x0304, 0x0303))),
        (openssl_hello("a", highest=ssl.TLSVersion.TLSv1_2), ClientHello("a", None, (0x0303,))),
        (openssl_hello("a", lowest=ssl.TLSVersion.TLSv1_3), ClientHello("a", None, (0x0304,))),
        (openssl_hello("127.0.0.1"), ClientHello(None, None, (0x0304, 0x0303))),
        (openssl_hello("bücher.example"), ClientHello("xn--bcher-kva.example", None, (0x0304, 0x0303))),
    ],
)
def test_the_hello_of_openssl_is_read_at_every_split(octets: bytes, expected: ClientHello) -> None:
    for cut in range(len(octets)):
        assert parse(octets[:cut]) is None
    assert parse(octets) == expected
    assert parse(bytearray(octets) + b"\x14\x03\x03") == expected


@given(st.integers(8, 600))
def test_a_hello_spread_over_records_is_put_together(size: int) -> None:
    octets = openssl_hello("mail.example.org", ["pop3"])
    spread = records(octets[5:], size)
    assert parse(spread) == ClientHello("mail.example.org", (b"pop3",), (0x0304, 0x0303))
    assert all(parse(spread[:cut]) is None for cut in range(0, len(spread), 7))


def test_the_head_of_the_message_may_be_split_over_records() -> None:
    message = hello(alpn(b"pop3"))
    for size in (1, 2, 3):
        assert parse(records(message[:6], size) + records(message[6:])) == ClientHello(None, (b"pop3",), (0x0303,))


def test_a_hello_without_extensions_is_read() -> None:
    assert parse(records(hello(None))) == ClientHello(None, None, (0x0303,))
    assert parse(records(hello(b"", session=bytes(32)))) == ClientHello(None, None, (0x0303,))


def test_a_long_hello_is_read_up_to_the_limit() -> None:
    filler = HELLO_LIMIT - len(hello(alpn(b"pop3"))) - 4
    message = hello(alpn(b"pop3") + extension(21, bytes(filler)))
    assert len(message) == HELLO_LIMIT
    assert parse(records(message)) == ClientHello(None, (b"pop3",), (0x0303,))
    assert parse(records(message, 1024)[:-1]) is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"mail.example.org", "mail.example.org"),
        (b"MAIL.example.org", "mail.example.org"),
        (b"under_score.example.org", "under_score.example.org"),
        (b"a" * 63 + b".org", "a" * 63 + ".org"),
        (b"a" * 64 + b".org", None),
        ((b"a" * 49 + b".") * 5 + b"aaaaa", ("a" * 49 + ".") * 5 + "aaaaa"),
        ((b"a" * 49 + b".") * 5 + b"aaaaaa", None),
        (b"192.0.2.1", None),
        (b"2001:db8::1", None),
        (b"", None),
        (b".", None),
        (b"mail.example.org.", None),
        (b"..", None),
        (b"mail..example", None),
        (b"-mail.example", None),
        (b"mail-.example", None),
        (b"mail.example\n", None),
        (b"mail.example\0.evil", None),
        (b"../../etc/passwd", None),
        (b"b\xc3\xbccher.example", None),
        (b"b\xfccher.example", None),
        (b"*.example.org", None),
    ],
)
def test_a_server_name_is_a_host_name_or_nothing(host: bytes, expected: str | None) -> None:
    parsed = parse(records(hello(server_name(host))))
    assert parsed is not None
    assert parsed.server_name == expected


def test_a_server_name_of_unknown_kind_or_a_second_one_is_nothing() -> None:
    assert parse(records(hello(server_name(b"a.example", kind=1)))) == ClientHello(None, None, (0x0303,))
    entries = (b"\x00\x00\x01a") * 2
    twice = extension(0, struct.pack(">H", len(entries)) + entries)
    assert parse(records(hello(twice))) == ClientHello(None, None, (0x0303,))


@pytest.mark.parametrize(
    "octets",
    [
        b"USER alice\r\n",
        b"GET / HTTP/1.1\r\n",
        b"\x80\x2e\x01\x03\x01\x00\x15",  # SSLv2
        b"\x16\x02",
        b"\x15\x03\x01\x00\x02\x02\x28",  # an alert
        b"\x16\x03\x01\x00\x00",  # an empty record
        b"\x16\x03\x01\x40\x01",
        b"\x16\x03\x01\x00\x01\x02",  # a ServerHello
        b"\x16\x03\x01\x00\x04\x01\x01\x00\x00",  # 64 KiB and more
        records(b"\x01", 1) + b"\x17\x03\x01\x00\x01\x00",
        records(hello(b"")[:-2] + b"\x00\x01"),
        records(hello(b"", trailer=b"x")),
        records(hello(b"\x00\x10\x00")),
        records(hello(b"\x00\x10\x00\x05abcd")),
        records(hello(alpn(b"pop3") + alpn(b"pop3"))),
        records(hello(server_name(b"a.example") + server_name(b"b.example"))),
        records(hello(alpn())),
        records(hello(alpn(b""))),
        records(hello(extension(16, b""))),
        records(hello(extension(16, b"\x00\x05\x05pop3"))),
        records(hello(extension(16, b"\x00\x05\x04pop3x"))),
        records(hello(extension(0, b"\x00\x00"))),
        records(hello(extension(0, b"\x00\x04\x00\x00\x09a"))),
        records(hello(extension(43, b"\x00"))),
        records(hello(extension(43, b"\x03\x03\x04\x03"))),
        records(hello(session=b"")[:20]).replace(b"\x01\x00\x00", b"\x01\x00\x00")[:5]
        + b"\x01\x00\x00\x02\x03\x03"
        + bytes(20),
    ],
)
def test_what_is_no_proper_hello_is_refused(octets: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse(octets)
    assert caught.value.reason == "tls"


def test_a_drip_of_tiny_records_is_refused() -> None:
    tiny = records(b"\x01\x00\x40\x00" + bytes(RECORDS_LIMIT), 1)
    assert parse(tiny[: 6 * RECORDS_LIMIT - 1]) is None
    with pytest.raises(RemoteProtocolError):
        parse(tiny)


@given(st.binary(max_size=120), st.integers(0, 60))
def test_any_octets_end_in_a_hello_a_refusal_or_a_wait(noise: bytes, keep: int) -> None:
    base = records(hello(server_name(b"a.example") + alpn(b"pop3")))
    octets = base[:keep] + noise + base[keep + len(noise) :]
    try:
        whole = parse(octets)
    except RemoteProtocolError:
        return
    for cut in range(len(octets)):
        assert parse(octets[:cut]) in (None, whole), "what is said of the whole is never said otherwise of a beginning"


def test_the_alert_is_understood_by_openssl() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(NO_APPLICATION_PROTOCOL)
    with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
        client.do_handshake()
