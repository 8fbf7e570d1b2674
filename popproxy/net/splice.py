"""Moves the middle of a long message from socket to socket inside the kernel, unread.

What makes it safe although nobody looks for the end of the message:

* only one command is under way, so an honest server sends nothing behind the final dot until the client has had it and
  asks for more. Whatever is followed by more octets is therefore body, and the last octets that there are never go
  unread: the end of the message, and all that is left when less than `LEAST` waits, takes the ordinary way;
* the size that the server has announced is a second bound. A size that is too small only makes more go the ordinary
  way; one that is too great changes nothing, since the end is found all the same.

A server that sends octets behind its own final dot could have them taken for the reply to a later command. It could put
them into the message as well.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import termios
from typing import Protocol

from popproxy.net.channel import Channel
from popproxy.net.reactor import READABLE

LEAST = 64 * 1024
"""Octets that must be waiting, and be expected besides, for a move to be worth while."""
_LEFT = 4096  # octets of them that stay unread; five would do
_PIPE = 1 << 20
_UNSENT = 1 << 20  # what the client's socket does not take of a pipe would have to be read after all
_F_SETPIPE_SZ = 1031
_MOVE = 1  # SPLICE_F_MOVE
_NONBLOCK = 2  # SPLICE_F_NONBLOCK


class Pipe:
    """The kernel's buffer between two sockets. One serves all sessions: it is empty between two moves."""

    __slots__ = ("_reader", "_size", "_writer")

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # an unprivileged user's share may be used up
            fcntl.fcntl(self._writer, _F_SETPIPE_SZ, _PIPE)
        self._size = fcntl.fcntl(self._writer, fcntl.F_GETPIPE_SZ)

    def move(self, source: int, sink: int, octets: int) -> tuple[int, bytes]:
        """Move up to `octets` from one descriptor to another.

        Returns how many have left the source, and those of them that the sink has not taken. Raises OSError of the
        source, and BlockingIOError if it has nothing.
        """
        moved = os.splice(source, self._writer, min(octets, self._size), flags=_MOVE | _NONBLOCK)
        left = moved
        with contextlib.suppress(OSError):  # the sink's own trouble is found by whoever writes the rest to it
            while left:
                left -= os.splice(self._reader, sink, left, flags=_MOVE | _NONBLOCK)
        rest = []
        while left:
            rest.append(os.read(self._reader, left))
            left -= len(rest[-1])
        return moved, b"".join(rest)

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._reader)
        os.close(self._writer)


class Moving(Protocol):
    """Who relays the message."""

    @property
    def octets_to_move(self) -> int:
        """Octets that are still expected of the body, and need not be read."""
        ...

    def moved(self, octets: int, rest: bytes) -> None:
        """So many octets were moved; `rest`, the last of them, the sink has not taken yet."""
        ...


class Splice:
    """Stands before `source` while a long message comes from it, and moves what it can to `sink`."""

    __slots__ = ("_engaged", "_moving", "_pipe", "_sink", "_source")

    def __init__(self, pipe: Pipe, source: Channel, sink: Channel, moving: Moving) -> None:
        self._pipe = pipe
        self._source = source
        self._sink = sink
        self._moving = moving
        self._engaged = False
        sink.hold_unsent(_UNSENT)

    def engage(self) -> None:
        """A message is under way: see whether it is long enough."""
        if not self._engaged and self._moving.octets_to_move >= LEAST:
            self._engaged = True
            self._source.divert(self)

    def ready(self, events: int) -> None:
        """From the reactor, in place of the source."""
        source, sink = self._source, self._sink
        expected = self._moving.octets_to_move
        if expected < LEAST or sink.closed:
            self._engaged = False
            source.divert(None)
        elif events & READABLE and source.reading and not sink.pending:
            octets = min(expected, _waiting(source.fd) - _LEFT)
            if octets >= LEAST - _LEFT:
                try:
                    moved, rest = self._pipe.move(source.fd, sink.fd, octets)
                except OSError:
                    source.ready(events)  # which meets the same trouble, and knows what to do
                    return
                self._moving.moved(moved, rest)
                return
        source.ready(events)

    def failed(self) -> None:
        """From the reactor."""
        self._source.failed()


def _waiting(fd: int) -> int:
    """Octets that can be read."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]
