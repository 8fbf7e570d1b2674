"""Keytabs octet by octet, as MIT's library writes them: for keys that no KDC of today would make."""

from __future__ import annotations

import struct

AES = 18
RC4 = 23


def keytab(*records: bytes) -> bytes:
    """A file of these records."""
    return b"\x05\x02" + b"".join(records)


def record(principal: str = "pop/mail.a.test@A.TEST", version: int = 3, enctype: int = AES, more: bytes = b"") -> bytes:
    """One key, which is `SECR`; `more` stands behind it."""
    name, _, realm = principal.rpartition("@")
    parts = name.split("/")
    octets = struct.pack(">H", len(parts)) + _counted(realm) + b"".join(map(_counted, parts))
    octets += struct.pack(">IIBHH", 1, 0, version & 255, enctype, 4) + b"SECR" + more
    return struct.pack(">i", len(octets)) + octets


def _counted(text: str) -> bytes:
    return struct.pack(">H", len(text.encode())) + text.encode()
