"""The records that are rendered but not yet written: bounded, numbered, in order. No event loop."""

from __future__ import annotations

import errno
from collections.abc import Callable
from time import gmtime, strftime, time_ns

Write = Callable[[memoryview], int]
"""Takes octets, returns how many of them were written. Raises OSError."""


class RecordBuffer:
    """Numbers records, keeps them until a sink has taken them, and knows which ones were lost.

    When `limit` octets are pending, records are dropped, but never in silence: their numbers are kept, and as soon as
    there is room again an ``audit_gap`` record names them. Every number therefore stands in the log, either as a
    record or inside a gap.
    """

    __slots__ = (
        "_head",
        "_limit",
        "_lines",
        "_lost_from",
        "_second",
        "_sequence",
        "_taken",
        "_unsent",
        "lost",
        "octets",
        "written",
    )

    def __init__(self, limit: int) -> None:
        self.octets = 0  # pending, in `_unsent` and `_lines` together
        self.lost = 0  # records dropped for which no audit_gap has been recorded yet
        self.written = 0  # records that a sink has taken whole, since the start
        self._limit = limit
        self._second = -1  # the second of `_head`, formatted once
        self._head = ""  # how a record of this second begins: time in UTC, up to its microseconds
        self._sequence = 0  # number of the latest record
        self._lost_from = 0  # number of the first lost record
        self._lines: list[str] = []  # rendered records, newest last
        self._unsent = b""  # older records in octets, from the start of a line
        self._taken = 0  # octets of `_unsent` that the sink has: always within its first line

    def append(self, fields: str) -> bool:
        """Number and keep a record; `fields` are JSON members from ``"event.action"`` on. False: it was dropped."""
        if self.lost:
            if self.octets > self._limit // 2:  # not at the first free octet, or every other record would be a gap
                self._sequence += 1
                self.lost += 1
                return False
            self._record_gap()
        self._sequence = sequence = self._sequence + 1
        second, nanoseconds = divmod(time_ns(), 1_000_000_000)
        if second != self._second:
            self._second = second
            self._head = strftime('{"@timestamp":"%Y-%m-%dT%H:%M:%S.', gmtime(second))
        line = f'{self._head}{nanoseconds // 1000:06d}Z","event.sequence":{sequence},{fields}}}\n'
        octets = self.octets + len(line)  # all of it is ASCII
        if octets > self._limit:
            self.lost = 1
            self._lost_from = sequence
            return False
        self._lines.append(line)
        self.octets = octets
        return True

    def drain(self, write: Write) -> None:
        """Give everything to `write`, an ``audit_gap`` record last if one is due; `written` counts what it took whole.

        Raises OSError from `write`; what was not taken stays pending, and the next call goes on in the middle of the
        line.
        """
        while True:
            if self._unsent:
                self._drain_unsent(write)
            if not self._lines and self.lost:
                self._record_gap()
            if not self._lines:
                return
            self._unsent = "".join(self._lines).encode("ascii")
            self._lines.clear()

    @property
    def unfinished(self) -> int:
        """Octets of the first pending line that the sink has already."""
        return self._taken

    def restart_line(self) -> None:
        """Write the first pending line from its start again, because it will go to another file."""
        self._taken = 0

    def discard(self) -> int:
        """Give up everything pending; returns how many records that were."""
        count = self._unsent.count(b"\n") + len(self._lines)
        self._lines.clear()
        self._unsent = b""
        self.octets = self._taken = 0
        return count

    def _drain_unsent(self, write: Write) -> None:
        unsent, taken = self._unsent, self._taken
        view = memoryview(unsent)
        try:
            while taken < len(unsent):
                count = write(view[taken:])
                if count == 0:
                    raise OSError(errno.EIO, "nothing was written")
                taken += count
        finally:
            whole = unsent.rfind(b"\n", 0, taken) + 1
            self.written += unsent.count(b"\n", 0, whole)
            self.octets -= whole
            self._unsent = unsent[whole:]
            self._taken = taken - whole

    def _record_gap(self) -> None:
        first, last, lost = self._lost_from, self._sequence, self.lost
        self.lost = 0
        self.append(
            '"event.action":"audit_gap","event.outcome":"failure","event.reason":"buffer_full",'
            f'"popproxy.audit.lost":{lost},"popproxy.audit.lost_from":{first},"popproxy.audit.lost_to":{last}'
        )
