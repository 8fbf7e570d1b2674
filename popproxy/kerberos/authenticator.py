"""What is the same in an AP-REQ whenever somebody shows it again: the end of its authenticator's ciphertext.

The rest of it can be changed by whoever has seen it: nothing authenticates the outer encoding (RFC 4120 section 5.5.1).
The end of the ciphertext is the checksum over all of it (RFC 3961 section 5.3); MIT's replay cache takes the same.
"""

from __future__ import annotations

from typing import Final

TAG: Final = 16
"""Octets at the end of the ciphertext, of which the checksum has 12 or more."""
_GSS: Final = 0x60
_KERBEROS: Final = bytes.fromhex("06092a864886f712010202") + b"\x01\x00"  # its OID, and that an AP-REQ follows
_AP_REQ: Final = 0x6E
_SEQUENCE: Final = 0x30
_OCTET_STRING: Final = 0x04


class _NotDer(Exception):
    """Not as RFC 4120 has it."""


def authenticator_tag(token: bytes) -> bytes | None:
    """Of an AP-REQ in DER, bare or in GSSAPI's framing (RFC 4121 section 4.1). None if it is no such thing.

    Strict, so that no two readings of it differ: what a decoder would forgive here is refused.
    """
    try:
        if token[:1] == bytes((_GSS,)):
            content = _only(token, _GSS)
            if not content.startswith(_KERBEROS):
                return None
            token = content[len(_KERBEROS) :]
        fields = _fields(_only(_only(token, _AP_REQ), _SEQUENCE))
        if [tag for tag, _ in fields] != [0xA0, 0xA1, 0xA2, 0xA3, 0xA4]:
            return None
        encrypted = _fields(_only(fields[4][1], _SEQUENCE))
        if [tag for tag, _ in encrypted] not in ([0xA0, 0xA2], [0xA0, 0xA1, 0xA2]):
            return None
        ciphertext = _only(encrypted[-1][1], _OCTET_STRING)
    except _NotDer:
        return None
    return ciphertext[-TAG:] if len(ciphertext) >= TAG else None


def _only(data: bytes, tag: int) -> bytes:
    """The content of the one element that `data` is."""
    found, content, rest = _element(data)
    if found != tag or rest:
        raise _NotDer
    return content


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        tag, content, data = _element(data)
        found.append((tag, content))
    return found


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag, content, and what follows (X.690 section 8.1, definite lengths in their shortest form)."""
    if len(data) < 2:
        raise _NotDer
    tag, length, start = data[0], data[1], 2
    if length & 0x80:
        octets = length & 0x7F
        start += octets
        length = int.from_bytes(data[2:start], "big")
        if not 1 <= octets <= 4 or length < 0x80 or data[2:3] == b"\0":
            raise _NotDer
    if tag & 0x1F == 0x1F or start + length > len(data):
        raise _NotDer
    return tag, data[start : start + length], data[start + length :]
