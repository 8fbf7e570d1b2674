"""The records that are sealed but not yet written by one sink: bounded, in order. No event loop."""

from __future__ import annotations

import errno
from collections.abc import Callable

Write = Callable[[memoryview], int]
"""Takes octets, returns how many of them were written. Raises OSError."""


class RecordBuffer:
    """Keeps records until a sink has taken them, and knows which ones were lost.

    When `limit` octets are pending, records are dropped, but never in silence: their numbers are kept, and once there
    is room again the owner records an ``audit_gap`` that names them. Every number therefore stands in the log, either
    as a record or inside a gap.
    """

    __slots__ = ("_limit", "_lines", "_lost_from", "_taken", "_unsent", "lost", "octets", "written")

    def __init__(self, limit: int) -> None:
        self.octets = 0  # pending, in `_unsent` and `_lines` together
        self.lost = 0  # records dropped for which no audit_gap has been recorded yet
        self.written = 0  # records that a sink has taken whole, since the start
        self._limit = limit
        self._lost_from = 0  # number of the first lost record
        self._lines: list[bytes] = []  # sealed records, newest last
        self._unsent = b""  # older records, from the start of a line
        self._taken = 0  # octets of `_unsent` that the sink has: always within its first line

    def append(self, line: bytes, sequence: int) -> bool:
        """Keep the record of this number. False: it was dropped."""
        octets = self.octets + len(line)
        if self.lost or octets > self._limit:
            if not self.lost:
                self._lost_from = sequence
            self.lost += 1
            return False
        self._lines.append(line)
        self.octets = octets
        return True

    @property
    def may_go_on(self) -> bool:
        """Records were lost, and there is room: not at the first free octet, or every other record would be a gap."""
        return self.lost > 0 and self.octets <= self._limit // 2

    def take_gap(self) -> tuple[int, int]:
        """The number of the first lost record, and how many are lost; what comes now is kept again."""
        lost, self.lost = self.lost, 0
        return self._lost_from, lost

    def drain(self, write: Write) -> None:
        """Give everything to `write`; `written` counts what it took whole.

        Raises OSError from `write`; what was not taken stays pending, and the next call goes on in the middle of the
        line.
        """
        while True:
            if self._unsent:
                self._drain_unsent(write)
            if not self._lines:
                return
            self._unsent = b"".join(self._lines)
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
