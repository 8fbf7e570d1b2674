"""The files of an audit log, rotated and compressed ones included, read line by line."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from popproxy.observe.audit_render import MAX_RECORD

REPORTED_EVERY = 1 << 20
"""Octets of a file between two reports of progress."""
POLL = 0.2
"""Seconds between two looks at a file that is followed."""
HELD = 200
"""As many files are held open at most, the latest: the others have their names for long."""
_TRIES = 50  # looks, while files get other names
_TIME = re.compile(rb'\{"@timestamp":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6})')

Progress = Callable[[Path, int, int], None]
"""Told the file, how many of its octets are read, and how many there are."""
Damaged = Callable[[str], None]
"""Told why a compressed file cannot be read to its end."""


def log_files(current: Path) -> list[Path]:
    """`current` and what rotation has made of its predecessors (``.1``, ``.2.gz``, ``-20261123``), oldest first."""
    found = [path for path in current.parent.glob(f"{glob_escaped(current.name)}*") if _is_rotated(current, path)]
    times: dict[Path, float] = {}
    for path in found:
        with contextlib.suppress(FileNotFoundError):  # compressed meanwhile, or a link to nothing
            status = path.stat()
            if path == current or stat.S_ISREG(status.st_mode):  # whoever opens a pipe may wait for ever
                times[path] = status.st_mtime  # renaming keeps it, gzip sets it
    older = sorted((path for path in times if path != current), key=lambda path: (times[path], path.name))
    return [*older, *([current] if current in times else [])]


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file as it was when somebody began to read the log, whatever rotation makes of it meanwhile."""

    path: Path
    held: BinaryIO | None = None
    size: int | None = None
    """Octets that count; None: all that there are."""
    begun: str = ""
    """When: the time of its first record, or in its form that of the latest change."""


@contextlib.contextmanager
def held(paths: Callable[[], Sequence[Path]], last: Path | None = None) -> Iterator[list[LogFile]]:
    """The files that `paths` finds, kept open, and only what is in them now.

    A process that has begun in a file has written all that is to be in the one before: so that is looked at later, and
    what comes while the log is read is left out. If files get other names while they are looked at they are looked for
    again. With `last`, which is the last one, the others are in the order of their first records: copies have been
    changed at other times. Raises OSError.
    """
    for tries in range(_TRIES, -1, -1):
        with contextlib.ExitStack() as opened:
            found = paths()
            try:
                files = [_held(path, opened, number < HELD) for number, path in enumerate(reversed(found))][::-1]
            except FileNotFoundError:
                if tries == 0 or list(paths()) == list(found):
                    raise
                continue
            if tries and (any(map(_renamed, files)) or list(paths()) != list(found)):
                continue
            yield files if last is None else sorted(files, key=lambda file: (file.path == last, file.begun))
            return


def _renamed(file: LogFile) -> bool:
    return file.held is not None and file.size is not None and _replaced(file.held, file.path)


def _held(path: Path, opened: contextlib.ExitStack, keep: bool) -> LogFile:
    file = path.open("rb")
    with contextlib.ExitStack() as unless_kept:
        unless_kept.callback(file.close)
        status = os.fstat(file.fileno())
        size = status.st_size if stat.S_ISREG(status.st_mode) and path.suffix != ".gz" else None
        begun = datetime.fromtimestamp(status.st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        if stat.S_ISREG(status.st_mode):
            begun = _begun(file, path) or begun
        if keep:
            opened.push(unless_kept.pop_all())
    return LogFile(path, file if keep else None, size, begun)


def _begun(file: BinaryIO, path: Path) -> str:
    """The time of the first record, "" if there is none; the file is at its beginning then."""
    try:
        start = (gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file).read(64)
    except (OSError, EOFError, zlib.error):
        start = b""
    file.seek(0)
    found = _TIME.match(start)
    return "" if found is None else found[1].decode()


def glob_escaped(name: str) -> str:
    """`name` with nothing in it that glob would take for a pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _is_rotated(current: Path, path: Path) -> bool:
    rest = path.name[len(current.name) :].removesuffix(".gz")
    return not rest or (rest[0] in ".-" and rest[1:].replace("-", "").replace(".", "").isdigit())


def lines(log: Path | LogFile, progress: Progress | None = None, damaged: Damaged | None = None) -> Iterator[bytes]:
    """Every line of a file; the last may lack its end, torn by a crash or just being written. Raises OSError.

    What is longer than MAX_RECORD is no record, and cut to one octet more, its line end included: it may be gigabytes.
    Of a compressed file that is damaged all counts that can be had; `damaged` is told.
    """
    file = LogFile(log) if isinstance(log, Path) else log
    path, end_at = file.path, file.size
    with path.open("rb") if file.held is None else contextlib.nullcontext(file.held) as raw:
        if file.held is not None and raw.seekable():
            raw.seek(0)
        total, reported = os.fstat(raw.fileno()).st_size, 0
        stream: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        try:
            while (end_at is None or raw.tell() < end_at) and (line := stream.readline(MAX_RECORD + 1)):
                if len(line) > MAX_RECORD:
                    end = line
                    while end and not end.endswith(b"\n"):
                        end = stream.readline(MAX_RECORD)
                    line = line[:MAX_RECORD] + b"\n"
                yield line
                if progress is not None and raw.tell() - reported >= REPORTED_EVERY:
                    reported = raw.tell()
                    progress(path, reported, total)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if damaged is not None:
                damaged(str(error))


def follow(path: Path, *, wait: Callable[[float], None] = time.sleep) -> Iterator[bytes]:
    """Lines that are written from now on, for ever; a new file of this name is read from its beginning."""
    file = _opened(path)
    if file is not None:
        file.seek(0, os.SEEK_END)
    rest, left = b"", False
    while True:
        if file is None:
            wait(POLL)
            file = _opened(path)
        elif read := file.readline(MAX_RECORD + 1):
            rest = _joined(rest, read)
            if rest.endswith(b"\n"):
                yield rest
                rest = b""
        elif left:
            if rest:
                yield rest
            file.close()
            file, rest, left = _opened(path), b"", False
        elif _replaced(file, path):
            left = True  # what was written between our last look and the rename belongs to the old file
        else:
            wait(POLL)


def _joined(rest: bytes, more: bytes) -> bytes:
    """A line that came in pieces; too long, cut as by `lines`."""
    if len(rest) + len(more) <= MAX_RECORD:
        return rest + more
    return (rest + more)[:MAX_RECORD] + (b"\n" if more.endswith(b"\n") else b"")


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
