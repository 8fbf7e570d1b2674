"""Where audit records go. A sink moves octets and knows nothing of records. The file has a module of its own."""

from __future__ import annotations

import os
import select
import socket
import stat
from typing import Protocol


class Sink(Protocol):
    """A place for audit records. `name` is a metric label: ``file`` or ``stdout``."""

    name: str
    torn: int
    """Octets of unfinished records of others that have been cut off."""

    def write(self, data: memoryview) -> int:
        """Write `data` or its first part in one system call; returns how many octets. Raises OSError; never blocks."""
        ...

    @property
    def there(self) -> bool:
        """Whether what is written can still be found; a file may have been compressed and removed."""
        ...

    def due(self) -> bool:
        """Whether `reopen` would lead to another file."""
        ...

    def reopen(self, unfinished: int) -> bool:
        """Go on with a new file if there is one; the old one ends in `unfinished` octets of a torn line.

        False if there is none. Raises AuditError, and then goes on with the old file.
        """
        ...

    def tail(self) -> tuple[bytes, bool]:
        """The last octets that others have written there since we have; True if they are in the file before this."""
        ...

    def wait(self, timeout: float) -> None:
        """Block until a write may succeed, `timeout` seconds at most."""
        ...

    def close(self) -> None:
        """Close it. Not an error if it is closed already."""
        ...


class StdoutSink:
    """Standard output, whatever it is: a pipe or a socket whose reader is slow never stops the event loop.

    `fd` is the descriptor to use; it stays open and its flags, which other processes may share, stay as they are.
    """

    name = "stdout"

    def __init__(self, fd: int = 1) -> None:
        self.torn = 0
        self._socket: socket.socket | None = None
        self._fd = -1
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):  # journald
            self._socket = socket.socket(fileno=os.dup(fd))
        elif stat.S_ISREG(mode):
            self._fd = os.dup(fd)  # shares the offset with standard error if both go to one file
        else:
            self._fd = _open_again(fd)

    def write(self, data: memoryview) -> int:
        """One ``write`` or ``send`` that does not block."""
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._fd, data)

    @property
    def there(self) -> bool:
        """Standard output always is."""
        return True

    def due(self) -> bool:
        """Standard output cannot be rotated."""
        return False

    def reopen(self, unfinished: int) -> bool:
        """Nor that."""
        return False

    def tail(self) -> tuple[bytes, bool]:
        """What others write there cannot be read."""
        return b"", False

    def wait(self, timeout: float) -> None:
        """Until the reader has taken something."""
        wait_writable(self._fd if self._socket is None else self._socket.fileno(), timeout)

    def close(self) -> None:
        """Close our own descriptor; standard output itself stays open."""
        if self._socket is not None:
            self._socket.close()
        elif self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open_again(fd: int) -> int:
    """A descriptor for the same pipe or terminal with flags of its own, so that only ours does not block."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return os.dup(fd)  # not allowed to open it, or no /proc: a slow reader may then block us


def wait_writable(fd: int, timeout: float) -> None:
    """Block until `fd` can be written to, `timeout` seconds at most."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll(timeout * 1000)
