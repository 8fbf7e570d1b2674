"""A file that is read into memory and read again when somebody has changed it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from popproxy.errors import PopproxyError

T = TypeVar("T")

_SHOWN = 10  # problems in one log line

Fingerprint = tuple[int, int, int, int]


class RereadFile(Generic[T]):
    """The parsed contents of a file, in `value`.

    The file is looked at when somebody asks, at most once in `recheck` seconds, and read when its inode, size or times
    have changed. A new version that cannot be read or parsed leaves the old one in force and is logged once: an editor
    that saves half a file must not lock anybody out.
    """

    def __init__(
        self, path: Path, parse: Callable[[bytes], T], logger: logging.Logger, *, recheck: float = 1.0
    ) -> None:
        """Read the file now. Raises OSError, and whatever PopproxyError `parse` raises."""
        self.path = path
        self._parse = parse
        self._logger = logger
        self._recheck = recheck
        self._next_look = time.monotonic() + recheck
        self._reading = threading.Lock()  # refresh may run in a thread of a pool
        self._complaint = ""  # the last one logged; the same is not logged twice
        octets, self._seen = _read(path)  # fingerprint of the version last judged, good or bad
        self.value = parse(octets)

    def is_stale(self) -> bool:
        """Is it time to call `refresh`? Costs a stat once in `recheck` seconds, nothing in between."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + self._recheck
        try:
            return _fingerprint(os.stat(self.path)) != self._seen
        except OSError:
            return True  # refresh finds out why, and says so

    def refresh(self) -> None:
        """Read the file again. Never raises; returns at once if another thread is at it."""
        if not self._reading.acquire(blocking=False):
            return
        try:
            octets, seen = _read(self.path)
            self._seen = seen
            self.value = self._parse(octets)
            self._complaint = ""
            self._logger.info("%s was changed and has been read again", self.path)
        except OSError as error:
            self._complain(f"{self.path}: {error.strerror}")
        except PopproxyError as error:
            self._complain(str(error))
        finally:
            self._reading.release()

    def replace(self, octets: bytes) -> None:
        """Take over contents that this process has just written itself."""
        with self._reading:
            self.value = self._parse(octets)
            self._seen = _fingerprint(os.stat(self.path))

    def _complain(self, what: str) -> None:
        if what != self._complaint:
            self._complaint = what
            lines = what.splitlines()
            more = f" (and {len(lines) - _SHOWN} more)" if len(lines) > _SHOWN else ""
            self._logger.warning("the version read before stays in force: %s%s", " | ".join(lines[:_SHOWN]), more)


def _read(path: Path) -> tuple[bytes, Fingerprint]:
    with path.open("rb") as file:
        # Taken before reading: what is written meanwhile makes the next look differ.
        seen = _fingerprint(os.fstat(file.fileno()))
        return file.read(), seen


def _fingerprint(status: os.stat_result) -> Fingerprint:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
