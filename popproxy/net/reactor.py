"""Readiness of many sockets through one epoll object that the event loop watches as a single descriptor.

Why not the loop's own transports: they cost three times the memory a session, hide the input buffer (so STLS cannot be
made safe, see CVE-2011-0411) and, on plain asyncio, 280 KiB for each TLS session. This way the same code runs on uvloop
and asyncio.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Protocol

from popproxy.observe.logs import get_logger

READ_SIZE = 256 * 1024
"""Octets read at once; also what one session can have queued in each direction."""
READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT
BROKEN = select.EPOLLERR | select.EPOLLHUP
_BATCH = 256

log = get_logger("net")


class Watched(Protocol):
    """Owns a descriptor."""

    def ready(self, events: int) -> None:
        """The descriptor is ready for `events` (epoll flags)."""
        ...

    def failed(self) -> None:
        """A handler has raised: a bug, logged. End what it was about."""
        ...


class Reactor:
    """The sockets of one process.

    `buffer` and `plain` are the only read buffers there are: their content is valid until the receiver returns.
    """

    __slots__ = ("_afterwards", "_dispatching", "_epoll", "_forgotten", "_watched", "buffer", "loop", "plain")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.buffer = bytearray(READ_SIZE)
        self.plain = bytearray(READ_SIZE)  # what TLS has decrypted
        self._epoll = select.epoll()
        self._dispatching = False
        self._afterwards: list[tuple[Watched, Callable[[], None]]] = []
        self._watched: dict[int, Watched] = {}
        self._forgotten: set[int] = set()  # in this batch: its events are not for whoever has the number by now
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def watch(self, fd: int, owner: Watched, events: int) -> None:
        """Begin to call `owner.ready`, instead of an earlier owner's if there is one."""
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = owner

    def hand_over(self, fd: int, owner: Watched) -> None:
        """Call another owner from now on, for the same events."""
        self._watched[fd] = owner

    def change(self, fd: int, events: int) -> None:
        """Other events from now on; errors and hang-ups are always reported."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """No calls any more. The descriptor must be closed right after: that takes it out of the kernel's set."""
        if self._watched.pop(fd, None) is not None:
            self._forgotten.add(fd)

    @property
    def watching(self) -> int:
        """How many descriptors are open."""
        return len(self._watched)

    def close(self) -> None:
        """Stop watching everything. Not an error if it is closed already."""
        if self._epoll.closed:
            return
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._watched.clear()

    def handler_failed(self, owner: Watched) -> None:
        """Called while an exception of `owner` is handled: that one connection ends, nothing else."""
        log.exception("a connection's handler failed")
        try:
            owner.failed()
        except Exception:
            log.exception("it failed again while it was ended")

    def afterwards(self, owner: Watched, call: Callable[[], None]) -> None:
        """Call `call` for `owner` once all sockets that are ready now have been read; now, if none is being read.

        Short writes wait here for each other: one send to a process that sleeps costs twice as much as one to a
        process that the send before has woken up.
        """
        if self._dispatching:
            self._afterwards.append((owner, call))
        else:
            call()

    def _dispatch(self) -> None:
        watched, forgotten = self._watched, self._forgotten
        forgotten.clear()
        self._dispatching = True
        for fd, events in self._epoll.poll(0, _BATCH):
            owner = watched.get(fd)
            if owner is not None and fd not in forgotten:
                try:
                    owner.ready(events)
                except Exception:
                    self.handler_failed(owner)
        self._dispatching = False
        calls, self._afterwards = self._afterwards, []
        for owner, call in calls:
            try:
                call()
            except Exception:
                self.handler_failed(owner)
