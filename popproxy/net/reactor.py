"""Readiness of many sockets through one epoll object that the event loop watches as a single descriptor.

Why not the loop's own transports: they cost three times the memory a session, hide the input buffer (so STLS cannot be made
safe, see CVE-2011-0411) and, on plain asyncio, 280 KiB for each TLS session. This way the same code runs on uvloop and asyncio.
"""

from __future__ import annotations

import asyncio
import select
from typing import Protocol

from popproxy.observe.logs import get_logger

READ_SIZE = 256 * 1024
"""Octets read at once; also what one session can have queued in each direction."""
READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT
BROKEN = select.EPOLLERR | select.EPOLLHUP
_BATCH = 256

log = get_logger("net")


class Watched(Protocol):
    """Owns a descriptor. Spurious calls must do no harm: a descriptor may have been closed and reused within one batch."""

    def ready(self, events: int) -> None:
        """The descriptor is ready for `events` (epoll flags)."""
        ...


class Reactor:
    """The sockets of one process. `buffer` and `plain` are the only read buffers there are: their content is valid until the
    receiver returns.
    """

    __slots__ = ("_epoll", "_watched", "buffer", "loop", "plain")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.buffer = bytearray(READ_SIZE)
        self.plain = bytearray(READ_SIZE)  # what TLS has decrypted
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def watch(self, fd: int, owner: Watched, events: int) -> None:
        """Begin to call `owner.ready`, instead of an earlier owner's if there is one."""
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = owner

    def change(self, fd: int, events: int) -> None:
        """Other events from now on; errors and hang-ups are always reported."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """No calls any more. The descriptor must be closed right after: that takes it out of the kernel's set."""
        self._watched.pop(fd, None)

    def close(self) -> None:
        """Stop watching everything."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._watched.clear()

    def _dispatch(self) -> None:
        watched = self._watched
        for fd, events in self._epoll.poll(0, _BATCH):
            owner = watched.get(fd)
            if owner is not None:
                try:
                    owner.ready(events)
                except Exception:
                    log.exception("a connection's handler failed")  # its own session has been ended by its owner
