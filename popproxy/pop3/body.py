"""The body of a multi-line reply on its way: where it ends, how long it is, and a copy of the few that are read.

A body ends at the first CRLF.CRLF, and the CRLF of the status line counts as its beginning, so that an empty body needs
no special case (RFC 1939 section 3). `rfind` of that mark is several times faster than `find`: if the last mark in a
chunk is the chunk's tail and there is no earlier one, the body ends with the chunk; if there is none at all, the chunk
is all body. Only else do we search forward. A mark that straddles two chunks is found in the last four octets kept from
the first.
"""

from __future__ import annotations

Octets = bytes | bytearray

TERMINATOR = b"\r\n.\r\n"


class Body:
    """A body under way. `octets` have come of it; `limit` of them are kept in `kept` if they are to be read.

    `kept` begins with LF, so that a look-up finds each number at the beginning of a line. `announced`: how many octets
    the server has said the message has, 0 if it has not.
    """

    __slots__ = ("_limit", "_tail", "announced", "kept", "octets")

    def __init__(self, limit: int = 0, announced: int = 0) -> None:
        self.octets = 0
        self.announced = announced
        self.kept: bytearray | None = bytearray(b"\n") if limit else None
        self._limit = limit
        self._tail = b"\r\n"  # the last octets so far, four at most

    @property
    def overflowed(self) -> bool:
        """True if there was more to keep than `limit`."""
        return self.kept is not None and self.octets >= self._limit

    def take_all(self, buffer: Octets, end: int) -> bool:
        """Take ``buffer[:end]`` if the body goes on behind it and is not kept; False if not, and it is not taken."""
        if self.kept is not None or buffer.rfind(TERMINATOR, 0, end) >= 0 or self._straddling(buffer, 0, end) >= 0:
            return False
        self.octets += end
        self._remember(buffer, 0, end)
        return True

    def take(self, buffer: Octets, start: int, end: int) -> int:
        """Take what belongs to the body of ``buffer[start:end]``. Returns where it ends, or -1 if it goes on."""
        stop = self._find_end(buffer, start, end)
        until = end if stop < 0 else stop
        if self.kept is not None:
            room = self._limit - len(self.kept)
            self.kept += buffer[start : min(until, start + room)] if room > 0 else b""
        self.octets += until - start
        self._remember(buffer, start, until)
        return stop

    def skip(self, octets: int) -> None:
        """So many octets have gone by unseen, and the body did not end within the last four of them."""
        self.octets += octets
        self._tail = b""

    def _find_end(self, buffer: Octets, pos: int, end: int) -> int:
        stop = self._straddling(buffer, pos, end)
        if stop >= 0:
            return stop
        last = buffer.rfind(TERMINATOR, pos, end)
        if last < 0:
            return -1
        if last + 5 == end and buffer.rfind(TERMINATOR, pos, end - 1) < 0:
            return end
        return buffer.find(TERMINATOR, pos, end) + 5

    def _straddling(self, buffer: Octets, pos: int, end: int) -> int:
        """Where the body ends if its mark began in earlier octets, or -1."""
        tail = self._tail
        at = (tail + bytes(buffer[pos : min(pos + 4, end)])).find(TERMINATOR)
        return pos + at + 5 - len(tail) if at >= 0 else -1

    def _remember(self, buffer: Octets, start: int, stop: int) -> None:
        if stop - start >= 4:
            self._tail = bytes(buffer[stop - 4 : stop])
        else:
            self._tail = (self._tail + bytes(buffer[start:stop]))[-4:]
