"""What is in a keytab, as far as an operator asks: whose keys, which version, which encryption. Never the keys.

The file is that of MIT and Heimdal, format 2 (``05 02``): records of a signed length each, negative for a hole, all
numbers big-endian. A record is: number of name parts, realm, the parts, name type, time, version modulo 256, encryption
type, key, and the whole version if there is room left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from popproxy.kerberos.service import SERVICE

MAX_OCTETS: Final = 1 << 20
"""A larger file is no keytab."""
_FORMAT_2: Final = b"\x05\x02"
_STRONG: Final = {
    17: "aes128-cts-hmac-sha1-96",
    18: "aes256-cts-hmac-sha1-96",
    19: "aes128-cts-hmac-sha256-128",
    20: "aes256-cts-hmac-sha384-192",
    25: "camellia128-cts-cmac",
    26: "camellia256-cts-cmac",
}
_WEAK: Final = {1: "des-cbc-crc", 2: "des-cbc-md4", 3: "des-cbc-md5", 16: "des3-cbc-sha1", 23: "arcfour-hmac"}
"""Withdrawn by RFC 6649 and RFC 8429."""


class NotAKeytab(ValueError):
    """The octets are no keytab of format 2; the text says why, and holds none of them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key: `principal` with its realm (``pop/mail.example.com@EXAMPLE.COM``), its version, and its kind."""

    principal: str
    version: int
    enctype: int

    @property
    def weak(self) -> bool:
        """Is this kind of encryption of the past?"""
        return self.enctype in _WEAK

    @property
    def encryption(self) -> str:
        """Its name."""
        return _STRONG.get(self.enctype) or _WEAK.get(self.enctype) or f"type {self.enctype}"


def entries(path: Path) -> list[Entry]:
    """Every key of the file, in file order. Raises OSError, NotAKeytab."""
    with path.open("rb") as file:
        return parse(file.read(MAX_OCTETS + 1))


def usable(path: Path, principals: Sequence[str]) -> bool:
    """Can the file be read just now, and is there a key in it of one of `principals`?"""
    try:
        return any(belongs(entry, name) for entry in entries(path) for name in principals)
    except (OSError, NotAKeytab):
        return False


def belongs(entry: Entry, principal: str) -> bool:
    """Is that a key of `principal`, which may come without its realm?"""
    return principal in (entry.principal, entry.principal.rpartition("@")[0])


def serves(entry: Entry) -> bool:
    """Is that a key of a POP3 service?"""
    return entry.principal.startswith(f"{SERVICE}/")


def parse(octets: bytes) -> list[Entry]:
    """The keys in the octets of a file. Raises NotAKeytab."""
    if len(octets) > MAX_OCTETS:
        raise NotAKeytab("it is too large")
    if not octets:
        raise NotAKeytab("it is empty")
    if octets[:2] != _FORMAT_2:
        raise NotAKeytab("it does not begin like one")
    return list(_records(octets))


def _records(octets: bytes) -> Iterator[Entry]:
    at = 2
    while at + 4 <= len(octets):
        length = int.from_bytes(octets[at : at + 4], "big", signed=True)
        at += 4
        if length == 0:
            return  # what the libraries take for the end
        if length > 0:
            if at + length > len(octets):
                raise NotAKeytab("it is cut short")
            yield _Record(octets[at : at + length]).entry()
        at += abs(length)


class _Record:
    """Takes one record apart, from its beginning to its end."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._at = 0

    def entry(self) -> Entry:
        parts = self._number(2)
        realm = self._text()
        name = "/".join(self._text() for _ in range(parts))
        self._number(4)  # name type
        self._number(4)  # time
        version = self._number(1)
        enctype = self._number(2)
        self._take(self._number(2))  # the key
        if len(self._octets) - self._at >= 4:
            version = self._number(4) or version
        return Entry(f"{name}@{realm}", version, enctype)

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _text(self) -> str:
        return self._take(self._number(2)).decode("utf-8", "backslashreplace")

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._octets):
            raise NotAKeytab("one of its records is damaged")
        taken = self._octets[self._at : end]
        self._at = end
        return taken
