"""The chain of audit records: each names the one before it by its hash, some are signed. No input, no output.

Every process writes a segment of its own. A record is a line of JSON whose last members are the chain's::

    {"@timestamp":"...","event.sequence":7,"event.action":"dele",...,"chain.segment":"9f86d081884c7d65",
     "chain.previous":"<SHA-256 of the line of record 6, its line end included, in hex>"}

``event.sequence`` counts 1, 2, 3 ... within a segment; the first record's ``chain.previous`` is 64 zeros. What is
signed (the first and last of a segment, the first in a new file, checkpoints, gaps) has two members more::

     ...,"chain.key":"<id of the key>","chain.signature":"<base64 of Ed25519 (RFC 8032)>"}

The signature is over the octets of the line up to ``,"chain.signature"``. Because of the hashes it covers all records
of the segment up to there. ``chain.heads`` in a signed record names the latest records of other segments, in the same
file or, where ``chain.heads_in`` says so, in the one before it: so the end of a segment whose process was killed is
witnessed by the next one.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from time import gmtime, strftime, time_ns
from typing import Protocol

ORIGIN = "0" * 64
"""What the first record of a segment has for a predecessor."""
HEADS = 32
"""Most segments that one record names."""

_CHAIN = re.compile(
    rb',"chain\.segment":"([0-9a-f]{16})","chain\.previous":"([0-9a-f]{64})"'
    rb'(?:,"chain\.key":"([0-9a-f]{16})","chain\.signature":"([A-Za-z0-9+/]{86}==)")?\}\n\Z'
)
_START = re.compile(
    rb'\{"@timestamp":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)","event\.sequence":([1-9]\d{0,18}),'
    rb'"event\.action":"([a-z0-9_]{1,64})"'
)
_SIGNATURE_OCTETS = len(',"chain.signature":""}\n') + 88
_UNSIGNED_OCTETS = len(',"chain.segment":"","chain.previous":""}\n') + 16 + 64
_SIGNED_OCTETS = _UNSIGNED_OCTETS + len(',"chain.key":"","chain.signature":""') + 16 + 88


class Signer(Protocol):
    """Signs records; `key_id` is 16 hexadecimal digits that tell keys apart."""

    key_id: str

    def sign(self, octets: bytes) -> bytes:
        """The 64 octets of the signature."""
        ...


@dataclass(frozen=True, slots=True)
class Head:
    """The latest record of a segment."""

    segment: str
    sequence: int
    hash: str

    def __str__(self) -> str:
        return f'{{"segment":"{self.segment}","sequence":{self.sequence},"hash":"{self.hash}"}}'


class Chain:
    """Numbers, dates, links and signs the records of one segment.

    `sequence` is the number of the latest record, `signed` that of the latest signed one; without a `signer` none is.
    """

    __slots__ = ("_head", "_link", "_previous", "_second", "_signer", "segment", "sequence", "signed")

    def __init__(self, signer: Signer | None = None) -> None:
        self.segment = secrets.token_hex(8)
        self.sequence = 0
        self.signed = 0
        self._signer = signer
        self._previous = ORIGIN
        self._link = f',"chain.segment":"{self.segment}","chain.previous":"'
        self._second = -1  # the second of `_head`, formatted once
        self._head = ""  # how a record of this second begins: time in UTC, up to its microseconds

    @property
    def signs(self) -> bool:
        """There is a key."""
        return self._signer is not None

    def seal(self, fields: str) -> bytes:
        """The line of the next record; `fields` are JSON members from ``"event.action"`` on, all of them ASCII."""
        self.sequence = sequence = self.sequence + 1
        second, nanoseconds = divmod(time_ns(), 1_000_000_000)
        if second != self._second:
            self._new_second(second)
        line = (
            f'{self._head}{nanoseconds // 1000:06d}Z","event.sequence":{sequence},'
            f'{fields}{self._link}{self._previous}"}}\n'
        ).encode()
        self._previous = sha256(line).hexdigest()
        return line

    def seal_signed(self, fields: str) -> bytes:
        """As `seal`, with a signature if there is a key."""
        if self._signer is None:
            return self.seal(fields)
        self.sequence += 1
        second, nanoseconds = divmod(time_ns(), 1_000_000_000)
        self._new_second(second)
        start = (
            f'{self._head}{nanoseconds // 1000:06d}Z","event.sequence":{self.sequence},'
            f'{fields}{self._link}{self._previous}","chain.key":"{self._signer.key_id}"'
        ).encode()
        signature = base64.b64encode(self._signer.sign(start))
        line = b'%b,"chain.signature":"%b"}\n' % (start, signature)
        self._previous = sha256(line).hexdigest()
        self.signed = self.sequence
        return line

    def _new_second(self, second: int) -> None:
        self._second = second
        self._head = strftime('{"@timestamp":"%Y-%m-%dT%H:%M:%S.', gmtime(second))


@dataclass(frozen=True, slots=True)
class Link:
    """What the chain says in a line. `key` is None in records without signature."""

    time: str
    sequence: int
    action: str
    segment: str
    previous: str
    hash: str
    key: str | None
    signature: bytes
    signed: bytes
    """The octets that the signature is over."""


def read_link(line: bytes) -> Link | None:
    """The chain's part of a line with its line end; None if it is no record of a chain."""
    start = _START.match(line)
    if start is None:
        return None
    end = _CHAIN.match(line, len(line) - _UNSIGNED_OCTETS) if len(line) > _UNSIGNED_OCTETS else None
    if end is None and len(line) > _SIGNED_OCTETS:
        end = _CHAIN.match(line, len(line) - _SIGNED_OCTETS)
    if end is None or end.start() < start.end():
        return None
    segment, previous, key, signature = end.groups()
    return Link(
        start[1].decode(), int(start[2]), start[3].decode(), segment.decode(), previous.decode(),
        sha256(line).hexdigest(), None if key is None else key.decode(),
        b"" if signature is None else base64.b64decode(signature),
        b"" if signature is None else line[:-_SIGNATURE_OCTETS],
    )  # fmt: skip


def heads(tail: bytes, own: str) -> list[Head]:
    """The latest records of all segments but `own` in the last octets of a file, which may begin in a line."""
    found: dict[str, Head] = {}
    for line in _backwards(tail):
        link = read_link(line)
        if link is not None and link.segment != own and link.segment not in found:
            found[link.segment] = Head(link.segment, link.sequence, link.hash)
            if len(found) == HEADS:
                break
    return list(found.values())


def _backwards(octets: bytes) -> Iterator[bytes]:
    """Whole lines, the last first."""
    end = octets.rfind(b"\n") + 1
    while end > 0:
        start = octets.rfind(b"\n", 0, end - 1) + 1
        if start == 0 and end - start > 0 and not octets.startswith(b'{"@timestamp"'):
            return  # perhaps the second half of a line
        yield octets[start:end]
        end = start
