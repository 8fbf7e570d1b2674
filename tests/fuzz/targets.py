"""The targets by name: what is run, what to begin with, and words that the fuzzer may put in."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from popproxy.config.schema import json_schema
from popproxy.types import Address
from popproxy.wire.proxy_protocol import encode_v1, encode_v2
from tests.fuzz import parsers
from tests.fuzz.parsers import MECHANISMS, ROOT
from tests.fuzz.pieces import text


@dataclass(frozen=True)
class Target:
    """`run` must not raise; `seeds` are inputs to begin with, `words` what the fuzzer may put in."""

    run: Callable[[bytes], None]
    seeds: list[bytes]
    words: list[bytes]
    longest: int = 4096


def b64(octets: bytes) -> bytes:
    return base64.b64encode(octets)


_SCRAM = b"n,,n=alice,r=clientnonce"
_CLIENTS = [
    b"USER alice\r\nPASS  secret \r\nSTAT\r\n",
    b"CAPA\r\nAUTH\r\nNOOP\r\nQUIT\r\n",
    b"AUTH PLAIN " + b64(b"\0alice\0secret") + b"\r\n",
    b"AUTH PLAIN\r\n" + b64(b"bob\0alice\0secret") + b"\r\n",
    b"AUTH LOGIN\r\n" + b64(b"alice") + b"\r\n" + b64(b"secret") + b"\r\n",
    b"APOP alice " + b"0" * 32 + b"\r\n",
    b"USER alice\r\nRPOP id\r\n",
    b"AUTH CRAM-MD5\r\n" + b64(b"alice " + b"0" * 32) + b"\r\n*\r\n",
    b"AUTH SCRAM-SHA-256 "
    + b64(_SCRAM)
    + b"\r\n"
    + b64(b"c=biws,r=clientnoncenonce,p=" + b64(bytes(32)))
    + b"\r\n\r\n",
    b"AUTH EXTERNAL =\r\nAUTH EXTERNAL\r\n" + b64(b"alice") + b"\r\n",
    b"AUTH OAUTHBEARER " + b64(b"n,a=alice,\1auth=Bearer token\1\1") + b"\r\nAQ==\r\n",
    b"AUTH XOAUTH2 " + b64(b"user=alice\1auth=Bearer token\1\1") + b"\r\n\r\n",
    b"AUTH GSSAPI " + b64(b"token") + b"\r\n" + b64(b"W\0\0\0\0\0") + b"\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
]
_WORDS = [
    b"USER ", b"PASS ", b"APOP ", b"RPOP ", b"AUTH ", b"CAPA\r\n", b"NOOP\r\n", b"QUIT\r\n", b"STLS\r\n", b"\r\n",
    b"*\r\n", b"=\r\n", b"+OK ", b"-ERR ", b"\0", b"\n", *(name.encode() for name in MECHANISMS),
]  # fmt: skip


_RESPONSES = [
    [b"\0alice\0secret"], [b"alice", b"secret"], [b"", b"alice " + b"0" * 32],
    [_SCRAM, b"c=biws,r=clientnoncenonce,p=" + b64(bytes(32)), b""],
    [b"p=tls-server-end-point,,n=alice,r=clientnonce", b"c=cD10bHM=,r=clientnoncenonce,p=" + b64(bytes(32))],
    [b"y,a=bob,n=alice=2C=3D,r=clientnonce"], [b"alice"],
    [b"n,a=alice,\1host=h\1port=110\1auth=Bearer token\1\1", b"\1"],
    [b"user=alice\1auth=Bearer token\1\1", b""], [b"token", b"", b"W\0" + bytes(8) + b"\1\0\0\0alice"],
]  # fmt: skip


_TRANSACTIONS = [
    (b"STAT\r\nLIST\r\nUIDL\r\n", b"+OK 1 10\r\n+OK\r\n1 10\r\n.\r\n+OK\r\n1 unique\r\n.\r\n"),
    (b"RETR 1\r\n", b"+OK 10 octets\r\nSubject: x\r\n\r\n..dot\r\n.\r\n"),
    (b"RETR 1\r\n", b"+OK\r\n.\r\n"),
    (b"TOP 1 0\r\nDELE 1\r\nRSET\r\n", b"+OK\r\n\r\n.\r\n+OK\r\n-ERR [IN-USE] no\r\n"),
    (b"CAPA\r\nNOOP\r\nLAST\r\n", b"+OK\r\nTOP\r\nSASL PLAIN\r\n.\r\n+OK\r\n"),
    (b"NOOP\r\nQUIT\r\n", b"+OK\r\n+OK bye\r\n"),
]


def _configurations() -> list[bytes]:
    return [path.read_bytes() for path in sorted((ROOT / "config").rglob("*.yaml"))]


def _names(value: Any) -> set[str]:
    found: set[str] = set()
    if isinstance(value, dict):
        found |= set(value.get("properties", {}))
        for inner in value.values():
            found |= _names(inner)
    elif isinstance(value, list):
        for inner in value:
            found |= _names(inner)
    return found


def _keys() -> list[bytes]:
    return [f"{name}:".encode() for name in sorted(_names(json_schema()))]


_V4, _V6 = (
    (Address("192.0.2.1", 1), Address("192.0.2.2", 110)),
    (Address("2001:db8::1", 1), Address("2001:db8::2", 995)),
)

TARGETS = {
    "client": Target(parsers.client_line, [b"\0\1\3\0" + octets for octets in _CLIENTS], _WORDS),
    "stls": Target(parsers.stls_line, [text(b"STLS\r\n" + octets) + b"\1\6" for octets in _CLIENTS[:3]], _WORDS),
    "sasl": Target(
        parsers.sasl,
        [bytes((number, 0)) + b"".join(map(text, responses)) for number in range(9) for responses in _RESPONSES],
        [
            b"n,,",
            b"y,,",
            b"p=",
            b"a=",
            b"n=",
            b"r=",
            b"c=",
            b",p=",
            b"\1",
            b"auth=Bearer ",
            b"user=",
            b"=2C",
            b"=3D",
            b"\0",
        ],
    ),
    "kpop": Target(
        parsers.kpop,
        [
            b"\1\0"
            + (19).to_bytes(4, "big")
            + b"KRB5_SENDAUTH_V1.0\0"
            + (9).to_bytes(4, "big")
            + b"KPOPV1.0\0"
            + (6).to_bytes(4, "big")
            + b"AP-REQ"
            + b"USER alice\r\n",
            b"\0\0AUTHV0.1",
            b"\0\0\x16\x03\1",
            b"\0\0USER alice\r\n",
        ],
        [b"KRB5_SENDAUTH_V1.0\0", b"KPOPV1.0\0", bytes(3), b"\0\0\0\x13", b"\0\0\0\x09", b"\0\1\0\0", b"\0\1\0\1"],
    ),
    "xclient": Target(
        parsers.front,
        [
            b"ADDR=192.0.2.1 PORT=40000 SESSION=dc92af40c059a068 TTL=5",
            b"ADDR=2001:db8::1 PORT=1 FORWARD=Zm9v CLIENT-TRANSPORT=TLS PROTO=POP3",
        ],
        [b" ADDR=", b" PORT=", b" SESSION=", b" TTL=", b"::ffff:192.0.2.1", b"%", b"=", b" "],
    ),
    "proxy": Target(
        parsers.proxy_header,
        [
            b"\0" + octets
            for octets in (encode_v1(*_V4), encode_v1(*_V6), encode_v1(), encode_v2(*_V4), encode_v2(*_V6))
        ],
        [
            b"PROXY ",
            b"TCP4 ",
            b"TCP6 ",
            b"UNKNOWN",
            b"\r\n",
            b"\r\n\r\n\0\r\nQUIT\n",
            b"\x21\x11",
            b"\x21\x21",
            b"\x20\0",
        ],
    ),
    "hello": Target(
        parsers.client_hello,
        [
            bytes.fromhex(
                "16030100550100005103030000000000000000000000000000000000000000000000000000000000000000000002c02b0100"
                "00260000001500130000106d61696c2e6578616d706c652e6f7267001000070005 04706f7033".replace(" ", "")
            )
        ],
        [b"\x16\x03\x01", b"\x00\x00\x00\x15", b"\x00\x10", b"\x00\x2b", b"\x04pop3"],
    ),
    "login": Target(
        parsers.server_login,
        [
            bytes((number, tls, known)) + text(octets)
            for number in range(4)
            for tls in range(2)
            for known in range(2)
            for octets in (
                b"+OK ready <1@x>\r\n+OK\r\nPIPELINING\r\nSTLS\r\nSASL PLAIN GSSAPI\r\n.\r\n+OK\r\n+OK\r\n",
                b"+OK\r\n+OK\r\n-ERR [AUTH] no\r\n+ \r\n+OK\r\n",
            )
        ],
        [
            b"+OK",
            b"-ERR",
            b"+ ",
            b"[AUTH]",
            b"[SYS/TEMP]",
            b"[IN-USE]",
            b"\r\n",
            b".\r\n",
            b"STLS",
            b"SASL PLAIN",
            b"<1@x>",
        ],
    ),
    "replies": Target(
        parsers.server_replies,
        [text(commands) + b"\2\5\1" + answers for commands, answers in _TRANSACTIONS],
        [
            b"+OK",
            b"-ERR",
            b"\r\n.\r\n",
            b".\r\n",
            b"..",
            b"RETR 1\r\n",
            b"LIST\r\n",
            b"UIDL\r\n",
            b"QUIT\r\n",
            b"CAPA\r\n",
            b"LAST\r\n",
        ],
        longest=8192,
    ),
    "configuration": Target(parsers.configuration, _configurations(), _keys(), longest=4096),
}


PLANTED = {
    "planted": Target(parsers.planted, [b"-ERR"], [b"+OK"]),
    "planted-slow": Target(parsers.planted_slow, [b"+OK"], []),
}
