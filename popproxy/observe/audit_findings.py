"""What can be found in an audit log that is verified, and what is remembered of it meanwhile. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from popproxy.observe.audit_chain import Link

REMEMBERED = 4096
"""Latest records of a segment by which what others say of it is judged."""


class Kind(StrEnum):
    """What can be found."""

    ALTERED = "altered"  # the record is not the one that was written
    REMOVED = "removed"  # records were here
    MISPLACED = "misplaced"  # added, repeated, or moved from elsewhere
    FOREIGN = "foreign"  # a line that is no record
    FORGED = "forged"  # a signature that is none, or is missing where there must be one
    CUT = "cut"  # other records prove that the segment was longer
    GAP = "gap"  # popproxy could not write records, and says so
    TORN = "torn"  # the last record is half written
    KILLED = "killed"  # the process ended without closing its segment; the next one vouches for its end
    NO_END = "no end"  # the same, and nothing vouches for its end
    MISSING_FILE = "missing file"  # the segment goes on in a file that is not there
    MISSING_SEGMENT = "missing segment"  # named by another one, and not there
    UNREADABLE = "unreadable"  # a compressed file that is damaged: nothing behind this can be had
    EMPTY = "empty"  # no record at all
    UNSIGNED = "unsigned"  # nothing but hashes protect the segment
    EARLIER = "earlier"  # the segment began in a file that was not given
    RUNNING = "running"  # its process is at work
    MENDED = "mended"  # what a killed process had half written was cut off


TAMPERING = frozenset({Kind.ALTERED, Kind.REMOVED, Kind.MISPLACED, Kind.FOREIGN, Kind.FORGED, Kind.CUT})
NOTES = frozenset({Kind.EARLIER, Kind.RUNNING, Kind.MENDED})


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file; lines count from 1."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found where. `sequence` is the number of the record, as far as it has one."""

    kind: Kind
    place: Place
    text: str
    segment: str = ""
    sequence: int = 0


@dataclass(slots=True)
class Segment:
    """What has been seen of one segment."""

    name: str
    first: Link
    begun: Place
    last: Link
    place: Place
    """Of the last record."""
    records: int = 0
    signed: int = 0
    """Number of the latest record that a good signature covers."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Host, process and version, as its first record says."""
    ended: bool = False
    cut: bool = False
    """Others have named records that are not there."""
    witness: Place | None = None
    """A record of another segment that names our last one."""
    before: str = ""
    """Hash of the last but one record."""
    recent: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    doubt: tuple[Link, Place] | None = None
    """The last record or the one before it, this one, has been altered; the next one tells which."""
    rival: tuple[Link, Place] | None = None
    """The last record and this one have the same number and predecessor; the next one tells which was put here."""
