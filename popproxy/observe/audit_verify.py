"""Is the audit log whole, and as it was written? Pure: lines in, findings out; no file, no clock.

Three kinds of answers are kept apart. *Tampering*: somebody has changed, removed, added or moved records. *Incomplete*:
records are missing, and nothing says that somebody has removed them: the process was killed, the disk was full, a file
was not given. *Notes*: nothing is wrong, and somebody may want to know.

What no log can show of itself: that its end is missing, if the end is cut off behind a signature and the process that
wrote it does not go on. Only the next segment names the one before, and only a copy elsewhere has the rest.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from popproxy.observe.audit_chain import ORIGIN, Head, Link, read_link
from popproxy.observe.audit_findings import Finding, Kind, Place, Segment
from popproxy.observe.audit_keys import PublicKeys
from popproxy.observe.audit_render import MAX_RECORD

SEGMENTS = 100_000
"""More are not remembered: years of workers are some thousands, and anybody can write a million in a file."""
LATE = 64
"""Latest records of a segment that has ended which others may still name: they have looked before, and write now."""


class Verifier:
    """Takes the lines of all files, the oldest first. `keys` None: signatures are not looked at.

    `copy`: the log has come through a network, so that a record may be repeated.
    """

    def __init__(self, keys: PublicKeys | None, *, copy: bool = False) -> None:
        self.records = 0
        self.segments: dict[str, Segment] = {}
        self.used: set[str] = set()
        """Ids of the keys that have signed."""
        self._keys = keys
        self._copy = copy
        self._files: list[Path] = []
        self._torn: list[Finding] = []
        self._lost: dict[str, tuple[Place, object]] = {}  # segments of which somebody says that their worker died
        self._named: list[tuple[Head, Place]] = []  # of segments that have not been seen, and must be in another file

    def take(self, path: Path, number: int, line: bytes) -> Iterator[Finding]:
        """The next line, with its line end."""
        if not self._files or self._files[-1] != path:
            self._files.append(path)
        place = Place(path, number)
        if self._copy:
            line = line[max(0, line.find(b'{"@timestamp"')) :]
        if not line.endswith(b"\n"):
            self._torn.append(Finding(Kind.TORN, place, f"the last record is half written ({len(line)} octets)"))
            return
        if len(line) > MAX_RECORD:
            yield Finding(Kind.FOREIGN, place, f"is no record: more than {MAX_RECORD} octets")
            return
        link = read_link(line)
        if link is None:
            yield Finding(Kind.FOREIGN, place, "is not a record of popproxy, or not any more")
            return
        segment = self.segments.get(link.segment)
        if segment is None and len(self.segments) >= SEGMENTS:
            yield Finding(Kind.FOREIGN, place, f"begins one more segment than the {SEGMENTS} there can be")
            return
        self.records += 1
        if segment is None:
            segment = self.segments[link.segment] = Segment(link.segment, link, place, link, place)
            yield from self._began(segment, line)
        else:
            linked = yield from self._linked(segment, link, place, line)
            if not linked:
                return
        segment.records += 1
        segment.before, segment.last, segment.place, segment.witness = segment.last.hash, link, place, None
        segment.recent.append((link.sequence, link.hash))
        if link.key is not None or link.action.startswith("audit_"):
            yield from self._signed(segment, link, place, line)
        elif link.action == "worker_lost" and len(self._lost) < SEGMENTS:
            record = _parsed(line)
            self._lost[str(record.get("popproxy.lost.segment"))[:16]] = place, record.get("popproxy.lost.sessions")

    def finish(self, running: frozenset[str] = frozenset()) -> Iterator[Finding]:
        """What can only be said at the end. `running`: names of the segments whose processes are at work."""
        for segment in self.segments.values():
            if segment.rival is not None:
                yield self._settle_rivals(segment, "")
            yield from self._settle_doubt(segment)
        for head, place in self._named:
            if head.segment not in self.segments:
                text = f"names the segment {head.segment}, of which there is nothing"
                yield Finding(Kind.MISSING_SEGMENT, place, text, head.segment, head.sequence)
        for segment in self.segments.values():
            yield from self._ended(segment, running)
        yield from self._torn

    # ---- one record and the one before ----

    def _began(self, segment: Segment, line: bytes) -> Iterator[Finding]:
        link, place = segment.first, segment.begun
        segment.origin = _origin(line)
        segment.before = link.previous
        if link.sequence == 1:
            if link.previous != ORIGIN or link.action != "audit_start":
                yield self._finding(Kind.FORGED, segment, place, "a segment does not begin like this")
        elif link.action == "audit_rotate" and len(self._files) == 1:
            text = f"the records 1 to {link.sequence - 1} of this segment are in earlier files"
            yield self._finding(Kind.EARLIER, segment, place, text)
        elif link.action == "audit_rotate":
            text = f"records up to {link.sequence - 1} of this segment are missing, with the file that they were in"
            yield self._finding(Kind.MISSING_FILE, segment, place, text)
        else:
            text = f"records up to {link.sequence - 1} of this segment are missing before this one"
            yield self._finding(Kind.REMOVED, segment, place, text)
        if self._keys is not None and link.key is None:
            text = "this segment is not signed: whoever could write the file can have written it"
            yield self._finding(Kind.UNSIGNED, segment, place, text)

    def _linked(self, segment: Segment, link: Link, place: Place, line: bytes) -> Generator[Finding, None, bool]:
        """Returns (by yield from) whether the segment goes on with this record."""
        if segment.rival is not None:
            yield self._settle_rivals(segment, link.previous)
        last = segment.last
        if link.sequence == last.sequence + 1:
            if link.previous == last.hash:
                if segment.doubt is not None:  # this record vouches for the last one: the one before it is bad
                    doubtful, where = segment.doubt
                    segment.doubt = None
                    yield Finding(Kind.ALTERED, where, "has been altered", segment.name, doubtful.sequence)
            elif segment.doubt is None:
                segment.doubt = (last, segment.place)
            else:
                yield from self._settle_doubt(segment)
            if segment.ended:
                segment.ended = False
                yield self._finding(Kind.MISPLACED, segment, place, "comes after the end of its segment", link)
            return True
        if link.sequence <= last.sequence:
            if self._copy and (link.sequence, link.hash) in segment.recent:
                self.records -= 1
                return False
            yield from self._backwards(segment, link, place)
        else:
            yield from self._settle_doubt(segment)
            yield self._hole(segment, link, place, line)
        return True

    def _backwards(self, segment: Segment, link: Link, place: Place) -> Iterator[Finding]:
        last = segment.last
        if segment.doubt is not None and link.sequence == last.sequence and link.previous == segment.doubt[0].hash:
            segment.doubt = None  # this one fits: the one between does not belong here
            place = segment.place
            text = "does not belong here: the next line is the record of this number"
        elif link.sequence == last.sequence and link.previous == segment.before and link.hash != last.hash:
            segment.rival = (last, segment.place)
            return
        else:
            text = f"comes after number {last.sequence}: it was repeated, moved or put here"
        yield from self._settle_doubt(segment)
        yield Finding(Kind.MISPLACED, place, text, segment.name, link.sequence)

    def _hole(self, segment: Segment, link: Link, place: Place, line: bytes) -> Finding:
        first, latest = segment.last.sequence + 1, link.sequence - 1
        which = f"number {first}" if first == latest else f"numbers {first} to {latest}"
        record = _parsed(line) if link.key is not None or segment.first.key is None else {}
        named = (record.get("popproxy.audit.lost_from"), record.get("popproxy.audit.lost_to"))
        ours = self._copy or "popproxy.audit.copy" not in record  # what a copy lacks, the log itself has
        if link.action == "audit_gap" and named == (first, latest) and ours:
            return self._finding(Kind.GAP, segment, place, f"{which} could not be written, and are lost", link)
        files = (segment.last.action, link.action) == ("audit_checkpoint", "audit_rotate")
        if files and segment.place.path != place.path:
            text = f"{which} are missing: a file between {segment.place.path} and this one"
            return self._finding(Kind.MISSING_FILE, segment, place, text, link)
        return self._finding(Kind.REMOVED, segment, place, f"{which} are missing before this one", link)

    @staticmethod
    def _settle_rivals(segment: Segment, previous: str) -> Finding:
        assert segment.rival is not None
        earlier, where = segment.rival
        segment.rival = None
        if previous == earlier.hash:
            segment.last, where, segment.place = earlier, segment.place, where
        text = "was put here: there is another record of this number"
        return Finding(Kind.MISPLACED, where, text, segment.name, earlier.sequence)

    def _settle_doubt(self, segment: Segment) -> Iterator[Finding]:
        """Nothing vouches for the last record. If it is signed it is as it was, and the one before is bad."""
        if segment.doubt is None:
            return
        before, where = segment.doubt
        segment.doubt = None
        if segment.signed == segment.last.sequence:
            yield Finding(Kind.ALTERED, where, "has been altered", segment.name, before.sequence)
        else:
            yield Finding(Kind.ALTERED, segment.place, "has been altered", segment.name, segment.last.sequence)

    # ---- signed records ----

    def _signed(self, segment: Segment, link: Link, place: Place, line: bytes) -> Iterator[Finding]:
        segment.ended = link.action == "audit_stop"
        if segment.ended and not self._copy:  # of years of segments not all can be remembered
            segment.recent = deque(islice(reversed(segment.recent), LATE), maxlen=LATE)
            segment.recent.reverse()
        if link.key is None:
            if self._keys is not None and segment.first.key is not None and link.action != "audit_start":
                yield self._finding(Kind.FORGED, segment, place, "is not signed, and should be", link)
            return
        if self._keys is not None:
            if link.key not in self._keys:
                text = f"is signed with the key {link.key}, whose public half was not given"
                yield self._finding(Kind.FORGED, segment, place, text, link)
                return
            if not self._keys.good(link.key, link.signature, link.signed):
                yield self._finding(Kind.FORGED, segment, place, "its signature is not over this record", link)
                return
        self.used.add(link.key)
        segment.signed = link.sequence
        record = _parsed(line)
        if link.action == "audit_torn":
            octets = record.get("popproxy.audit.torn")
            text = f"{octets} octets of a record that a killed process had half written were cut off before this"
            yield self._finding(Kind.MENDED, segment, place, text, link)
        before = record.get("chain.heads_in") == "file before"
        for head in _heads(record):
            yield from self._witnessed(head, place, before)

    def _witnessed(self, head: Head, place: Place, before: bool) -> Iterator[Finding]:
        """A signed record names the latest one of another segment, in this file or the one `before`."""
        segment = self.segments.get(head.segment)
        if segment is None:
            if not before:
                text = f"names the segment {head.segment} in this file, of which there is nothing before this"
                yield Finding(Kind.REMOVED, place, text, head.segment, head.sequence)
            elif len(self._files) > 1 and len(self._named) < SEGMENTS:
                self._named.append((head, place))
            return
        if segment.last.sequence < head.sequence:
            text = f"before this the segment had {head.sequence} records, and here it has {segment.last.sequence}"
            segment.cut = True
            yield Finding(Kind.CUT, place, f"{text} ({segment.place})", head.segment, segment.last.sequence)
            return
        if segment.last.sequence == head.sequence:
            segment.witness = place
        known = next((known for number, known in reversed(segment.recent) if number == head.sequence), None)
        if known is not None and known != head.hash:
            text = f"is not the record that {place} names"
            yield Finding(Kind.ALTERED, segment.place, text, head.segment, head.sequence)

    # ---- the end ----

    def _ended(self, segment: Segment, running: frozenset[str]) -> Iterator[Finding]:
        if segment.ended or segment.cut:
            return
        last = segment.last
        bare = last.sequence - segment.signed
        open_ended = f"; its last {bare} records are not signed" if bare and segment.signed else ""
        where, sessions = self._lost.get(segment.name, (None, 0))
        lost = "" if where is None else f"; its worker died with {sessions} sessions, says {where}"
        if segment.name in running:  # first: others vouch for the latest record of one that is idle, too
            text = f"process {segment.origin['process.pid']} goes on{open_ended}"
            yield self._finding(Kind.RUNNING, segment, segment.place, text, last)
        elif segment.witness is not None:
            text = (
                f"ends without audit_stop: killed, or the machine crashed; {segment.witness} vouches for its end{lost}"
            )
            yield self._finding(Kind.KILLED, segment, segment.place, text, last)
        else:
            text = f"ends without audit_stop: killed, or the rest was cut off{open_ended}{lost}"
            yield self._finding(Kind.NO_END, segment, segment.place, text, last)

    @staticmethod
    def _finding(kind: Kind, segment: Segment, place: Place, text: str, link: Link | None = None) -> Finding:
        return Finding(kind, place, text, segment.name, (link or segment.first).sequence)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _heads(record: dict[str, Any]) -> Iterator[Head]:
    named = record.get("chain.heads")
    for one in named if isinstance(named, list) else ():
        match one:
            case {"segment": str(segment), "sequence": int(sequence), "hash": str(octets)}:
                yield Head(segment, sequence, octets)


def _origin(line: bytes) -> dict[str, Any]:
    record = _parsed(line)
    kinds = {"observer.hostname": str, "process.pid": int, "process.entity_id": str, "observer.version": str}
    return {name: record[name] for name, kind in kinds.items() if isinstance(record.get(name), kind)}
