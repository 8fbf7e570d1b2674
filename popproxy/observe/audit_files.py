"""The files of an audit log, rotated and compressed ones included, read line by line."""

from __future__ import annotations

import contextlib
import gzip
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

REPORTED_EVERY = 1 << 20
"""Octets of a file between two reports of progress."""
POLL = 0.2
"""Seconds between two looks at a file that is followed."""

Progress = Callable[[Path, int, int], None]
"""Told the file, how many of its octets are read, and how many there are."""


def log_files(current: Path) -> list[Path]:
    """`current` and what rotation has made of its predecessors (``.1``, ``.2.gz``, ``-20261123``), oldest first."""
    found = [path for path in current.parent.glob(f"{glob_escaped(current.name)}*") if _is_rotated(current, path)]
    times = {path: path.stat().st_mtime for path in found}  # renaming keeps it, gzip sets it
    older = sorted((path for path in found if path != current), key=lambda path: (times[path], path.name))
    return [*older, *([current] if current in times else [])]


def glob_escaped(name: str) -> str:
    """`name` with nothing in it that glob would take for a pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _is_rotated(current: Path, path: Path) -> bool:
    rest = path.name[len(current.name) :].removesuffix(".gz")
    return not rest or (rest[0] in ".-" and rest[1:].replace("-", "").replace(".", "").isdigit())


def lines(path: Path, progress: Progress | None = None) -> Iterator[bytes]:
    """Every line of a file; the last may lack its end, torn by a crash or just being written. Raises OSError."""
    total, reported = path.stat().st_size, 0
    with path.open("rb") as raw:
        stream: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        with contextlib.suppress(EOFError, zlib.error):  # compressed only in part: what is there counts
            for line in stream:
                yield line
                if progress is not None and raw.tell() - reported >= REPORTED_EVERY:
                    reported = raw.tell()
                    progress(path, reported, total)


def follow(path: Path, *, wait: Callable[[float], None] = time.sleep) -> Iterator[bytes]:
    """Lines that are written from now on, for ever; a new file of this name is read from its beginning."""
    file = _opened(path)
    if file is not None:
        file.seek(0, os.SEEK_END)
    rest = b""
    while True:
        if file is None:
            wait(POLL)
            file = _opened(path)
            continue
        read = file.readline()
        if read:
            rest += read
            if rest.endswith(b"\n"):
                yield rest
                rest = b""
            continue
        if _replaced(file, path):
            # what was written between our last look and the rename belongs to the old file
            if last := file.read():
                yield from (rest + last).splitlines(keepends=True)
            file.close()
            file, rest = _opened(path), b""
            continue
        wait(POLL)


def _opened(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _replaced(file: BinaryIO, path: Path) -> bool:
    """Another file, or the same one cut short (copytruncate)."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return False  # between rename and SIGUSR1 the old file is still written
    mine = os.fstat(file.fileno())
    return (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino) or now.st_size < file.tell()
