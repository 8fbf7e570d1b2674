"""Cuts a byte stream into lines without ever scanning an octet twice.

Goal: a client that drips one octet at a time, or a backend that never ends a line, costs linear time and bounded
memory.
Plan: `_scanned` remembers how far the search for LF has come; an over-long line is reported once and its rest
discarded.
"""

from __future__ import annotations

from popproxy.errors import RemoteProtocolError

_CR = ord("\r")


class LineTooLong(RemoteProtocolError):
    """A line exceeded the limit. Its rest is discarded; the stream goes on after the next LF."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"line longer than {limit} octets", reason="line_too_long")


class LineSplitter:
    """Lines out of octets. A line ends in LF; one CR before it belongs to the line end.

    `limit` is the greatest length of a line in octets, its line end included; it may be changed between lines. `taken`
    counts the octets of all lines returned and of all that was discarded.
    """

    __slots__ = ("_buffer", "_discarding", "_scanned", "_start", "limit", "taken")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self._buffer = bytearray()
        self._start = 0  # where the current line begins
        self._scanned = 0  # no LF between _start and here
        self._discarding = False  # inside the rest of an over-long line

    def __len__(self) -> int:
        """Octets received and not yet returned."""
        return len(self._buffer) - self._start

    def __bool__(self) -> bool:
        """True unless the next octet fed begins a new line."""
        return self._discarding or len(self) > 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take what came from the socket."""
        if self._start:
            del self._buffer[: self._start]
            self._scanned -= self._start
            self._start = 0
        self._buffer += data

    def next_line(self) -> bytes | None:
        """The next complete line without its line end, or None. Raises LineTooLong once per over-long line."""
        while buffer := self._buffer:
            end = buffer.find(b"\n", self._scanned)
            if self._discarding:
                if end < 0:
                    self._drop(len(self._buffer))
                    return None
                self._drop(end + 1)
                self._discarding = False
                continue
            start = self._start
            if end < 0:
                self._scanned = len(buffer)
                if len(self) >= self.limit:
                    self._drop(len(buffer))
                    self._discarding = True
                    raise LineTooLong(self.limit)
                return None
            length = end + 1 - start
            if length > self.limit:
                self._drop(end + 1)
                raise LineTooLong(self.limit)
            line = bytes(buffer[start : end - 1 if end > start and buffer[end - 1] == _CR else end])
            if end + 1 == len(buffer):
                self.taken += length
                self._buffer = bytearray()  # give a once large buffer back
                self._start = self._scanned = 0
            else:
                self._drop(end + 1)
            return line
        return None

    def take_rest(self) -> bytes:
        """Everything buffered, complete lines or not, leaving nothing behind."""
        rest = bytes(self._buffer[self._start :])
        self._drop(len(self._buffer))
        return rest

    def _drop(self, until: int) -> None:
        self.taken += until - self._start
        if until >= len(self._buffer):
            self._buffer = bytearray()  # give a once large buffer back
            self._start = self._scanned = 0
        else:
            self._start = self._scanned = until
