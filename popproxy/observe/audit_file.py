"""The file of the audit log: one for several writers, who never leave half a record in it, and rotate it by turns.

All processes of one popproxy, and the old and the new ones while a new configuration takes over, append to the same
file. Each batch is written under ``flock``; what a full disk has cut is cut back to whole records before the lock is
given up, and what a writer that was killed has left unfinished is cut off by the next one. The lock is a file of its
own (``.audit.log.lock``), for writers only: whoever may read the log could hold a lock on it, and stop all logins.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from datetime import datetime
from pathlib import Path

from popproxy.errors import AuditError
from popproxy.observe.audit_files import log_files
from popproxy.observe.audit_sink import wait_writable

TAIL = 64 * 1024
"""Octets at the end of the file in which the latest records of others are looked for."""

_LOOK_INTERVAL = 1.0  # seconds between two looks at what has the path by now
_LOCK_LIMIT = 0.02  # seconds that a batch waits for another writer before it is tried again later
_LOCK_PAUSE = 0.0005
_TIME = re.compile(rb'\{"@timestamp":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)')


class FileSink:
    """Appends to a file, which is created with mode 0640 if it is missing. Raises AuditError if that fails.

    `rotate_size` (octets) and `rotate_interval` (seconds; whole multiples since 1970, so that a day ends at midnight,
    UTC) say when the file gets a new name; None: never.
    """

    name = "file"

    def __init__(self, path: Path, rotate_size: int | None = None, rotate_interval: float | None = None) -> None:
        self.torn = 0  # octets of unfinished records of others that have been cut off
        self._path = path
        self._rotate_size = rotate_size
        self._rotate_interval = rotate_interval
        self._look_again = 0.0  # monotonic
        self._end = -1  # where our latest write has ended
        self._regular = False
        self._since = 0.0  # when the file was begun
        self._fd = self._open()
        self._guard = _lock_file(path) if self._regular else -1

    def write(self, data: memoryview) -> int:
        """Append `data`, or as many of its lines as there is room for; returns how many octets that were.

        Raises OSError, and BlockingIOError while another writer is not done. What is no regular file takes what it can.
        """
        fd = self._fd
        if not self._regular:
            return os.write(fd, data)
        self._lock()
        try:
            start = self._mended(fd)
            count = os.write(fd, data)
            if count < len(data):
                count = self._cut_back(fd, start, bytes(data[:count]))
            self._end = start + count
            return count
        finally:
            self._unlock()

    @property
    def there(self) -> bool:
        """Whether the file has a name still: what is written to one without is lost."""
        return os.fstat(self._fd).st_nlink > 0

    def due(self) -> bool:
        """Whether another file has the path by now, or ours should be rotated; looks once a second at most."""
        now = time.monotonic()
        if now < self._look_again or not self._regular:
            return False
        self._look_again = now + _LOOK_INTERVAL
        return not self._is_ours() or self._is_full()

    def reopen(self, unfinished: int) -> bool:
        """Rotate the file if it is time, and go on with whatever has the path; False if that is our file still.

        Raises AuditError, and then goes on with the old file. `unfinished` octets of a torn line are cut off the old
        one where that is possible.
        """
        if self._regular:
            try:
                self._lock()
                try:
                    if self._is_ours() and (not self._is_full() or not self._rename()):
                        return False
                finally:
                    self._unlock()
            except OSError as error:
                raise AuditError(f"cannot rotate the audit file {self._path}: {error.strerror}") from error
        old = self._fd
        self._fd = self._open()
        if unfinished:
            with contextlib.suppress(OSError):
                os.ftruncate(old, os.fstat(old).st_size - unfinished)
        os.close(old)
        return True

    def tail(self) -> tuple[bytes, bool]:
        """The last octets of the file if others have written to it since we have, else nothing.

        If it is empty: those of its predecessor, and True.
        """
        with contextlib.suppress(OSError):
            size = os.fstat(self._fd).st_size if self._regular else 0
            if size and size != self._end:
                return os.pread(self._fd, TAIL, max(0, size - TAIL)), False
            older = [path for path in log_files(self._path)[:-1] if path.suffix != ".gz"] if self._regular else []
            if size == 0 and older:
                with older[-1].open("rb") as file:
                    file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
                    return file.read(), True
        return b"", False

    def wait(self, timeout: float) -> None:
        """A file never blocks; a named pipe may."""
        wait_writable(self._fd, timeout)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1

    # ---- pieces ----

    def _open(self) -> int:
        try:
            regular = not self._path.exists() or self._path.is_file()
            access = os.O_RDWR if regular else os.O_WRONLY
            fd = os.open(self._path, access | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK, 0o640)
        except OSError as error:
            raise AuditError(f"cannot open the audit file {self._path}: {error.strerror}") from error
        self._regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._end = -1
        self._since = self._begun(fd) if self._regular else 0.0
        return fd

    def _begun(self, fd: int) -> float:
        found = _TIME.match(os.pread(fd, 64, 0))
        if found is None:
            return time.time()
        return datetime.fromisoformat(f"{found[1].decode()}+00:00").timestamp()

    def _lock(self) -> None:
        """Raises BlockingIOError if another writer holds it for long: it may have been stopped."""
        give_up = time.monotonic() + _LOCK_LIMIT
        while True:
            try:
                fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(_LOCK_PAUSE)
            else:
                return

    def _unlock(self) -> None:
        fcntl.flock(self._locked, fcntl.LOCK_UN)

    @property
    def _locked(self) -> int:
        return self._fd if self._guard < 0 else self._guard

    def _mended(self, fd: int) -> int:
        """The length of the file, without half a line that a writer which was killed has left."""
        size = os.fstat(fd).st_size
        if size in (0, self._end) or os.pread(fd, 1, size - 1) == b"\n":
            return size
        whole = 0
        for end in range(size, 0, -TAIL):
            start = max(0, end - TAIL)
            found = os.pread(fd, end - start, start).rfind(b"\n")
            if found >= 0:
                whole = start + found + 1
                break
        try:
            os.ftruncate(fd, whole)
        except PermissionError:  # append only (chattr +a): the half must at least not become the beginning of ours
            return size + os.write(fd, b"\n")
        self.torn += size - whole
        return whole

    def _cut_back(self, fd: int, start: int, written: bytes) -> int:
        """The disk is full: leave only whole lines. Returns how many octets of `written` stay."""
        whole = written.rfind(b"\n") + 1
        try:
            os.ftruncate(fd, start + whole)
        except PermissionError:
            return len(written)
        if whole == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _is_full(self) -> bool:
        if self._rotate_size is not None and os.fstat(self._fd).st_size >= self._rotate_size:
            return True
        every = self._rotate_interval
        return every is not None and time.time() // every > self._since // every

    def _rename(self) -> bool:
        """Give the file the time for a name; False if another one of this second has it."""
        named = self._path.with_name(self._path.name + time.strftime("-%Y%m%d-%H%M%S", time.gmtime()))
        if named.exists() or named.with_name(named.name + ".gz").exists():
            return False
        os.rename(self._path, named)
        return True


def _lock_file(path: Path) -> int:
    """A descriptor of the file that writers lock; -1 if it cannot be had: then they lock the log itself."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path.with_name(f".{path.name}.lock"), flags, 0o600)
    except OSError:
        return -1
