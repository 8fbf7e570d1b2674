"""Where audit records go: a file, or standard output. A sink moves octets and knows nothing of records."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
from pathlib import Path
from typing import Protocol

from popproxy.errors import AuditError


class Sink(Protocol):
    """A place for audit records. `name` is a metric label: ``file`` or ``stdout``."""

    name: str

    def write(self, data: memoryview) -> int:
        """Write `data` or its first part in one system call; returns how many octets. Raises OSError; never blocks."""
        ...

    def reopen(self, unfinished: int) -> None:
        """Start a new file after a rotation; the old one ends in `unfinished` octets of a torn line.

        Raises AuditError, and then goes on with the old file.
        """
        ...

    def wait(self, timeout: float) -> None:
        """Block until a write may succeed, `timeout` seconds at most."""
        ...

    def close(self) -> None:
        """Close it. Not an error if it is closed already."""
        ...


class FileSink:
    """Appends to a file, which is created with mode 0640 if it is missing. Raises AuditError if that fails.

    The file must have no other writer.
    """

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = self._open()

    def write(self, data: memoryview) -> int:
        """One ``write``; appends whatever the file's length is by now."""
        return os.write(self._fd, data)

    def reopen(self, unfinished: int) -> None:
        """Go on with whatever file has the path now; the torn line is cut off the old one where that is possible."""
        old, self._fd = self._fd, self._open()
        with contextlib.suppress(OSError):
            os.ftruncate(old, os.fstat(old).st_size - unfinished)
        os.close(old)

    def wait(self, timeout: float) -> None:
        """A file never blocks; a named pipe may."""
        _wait_writable(self._fd, timeout)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK
        try:
            fd = os.open(self._path, flags, 0o640)
        except OSError as error:
            raise AuditError(f"cannot open the audit file {self._path}: {error.strerror}") from error
        try:
            self._end_torn_line(fd)
        except OSError as error:
            os.close(fd)
            raise AuditError(f"cannot append to the audit file {self._path}: {error.strerror}") from error
        return fd

    def _end_torn_line(self, fd: int) -> None:
        """A process that was killed while it wrote leaves half a line; ours must not become its second half."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            return
        with self._path.open("rb") as file:
            file.seek(status.st_size - 1)
            if file.read(1) != b"\n":
                os.write(fd, b"\n")


class StdoutSink:
    """Standard output, whatever it is: a pipe or a socket whose reader is slow never stops the event loop.

    `fd` is the descriptor to use; it stays open and its flags, which other processes may share, stay as they are.
    """

    name = "stdout"

    def __init__(self, fd: int = 1) -> None:
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

    def reopen(self, unfinished: int) -> None:
        """Standard output cannot be rotated."""

    def wait(self, timeout: float) -> None:
        """Until the reader has taken something."""
        _wait_writable(self._fd if self._socket is None else self._socket.fileno(), timeout)

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


def _wait_writable(fd: int, timeout: float) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll(timeout * 1000)
