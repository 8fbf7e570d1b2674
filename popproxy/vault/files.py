"""Writing a file so that readers see the old contents or the new, and one editor at a time."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from popproxy.errors import VaultError

_LOCK_PAUSE = 0.05  # seconds between two attempts to get the lock


def create(path: Path, octets: bytes, like: os.stat_result | None = None) -> None:
    """Write a new file with mode 0600, or with the owner, group and (0640 at most) mode of another one.

    Raises VaultError, also if there is one already.
    """
    with _errors(path), _temporary(path, octets, like) as temporary:
        try:
            os.link(temporary, path)  # unlike rename, never replaces
        except FileExistsError:
            raise VaultError(f"{path}: there is a file already; remove it first, or choose another name") from None
        _sync_directory(path.parent)


def replace(path: Path, octets: bytes) -> None:
    """Replace a file, following symbolic links; owner and group stay, mode at most 0640. Raises VaultError.

    The caller must hold its lock (`exclusive`).
    """
    with _errors(path):
        target = Path(os.path.realpath(path))
        sweep(target)
        with _temporary(target, octets, like=target.stat()) as temporary:
            os.rename(temporary, target)
            _sync_directory(target.parent)


def sweep(path: Path) -> None:
    """Remove what editors that were killed have left beside the file. The caller must hold the lock."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 16}.tmp"):
        left.unlink(missing_ok=True)


def take_place(new: Path, old: Path) -> None:
    """Rename a file to one beside it. Raises VaultError."""
    with _errors(old):
        os.rename(new, old)
        _sync_directory(old.parent)


@contextlib.contextmanager
def exclusive(path: Path, patience: float = 10.0) -> Iterator[None]:
    """Hold the lock of a file that editors replace; give up after `patience` seconds with VaultError.

    The file itself is locked, so no lock file is left behind and whoever cannot read it cannot hold it.
    """
    give_up = time.monotonic() + patience
    while True:
        with _errors(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _try_lock(descriptor):
                # The one before us may have put a new file in its place while we waited for the old one.
                if _is_still(path, descriptor):
                    yield
                    return
                continue
        finally:
            os.close(descriptor)
        if time.monotonic() >= give_up:
            raise VaultError(f"{path}: another editor has held the file for {patience:g} s; try again when it is done")
        time.sleep(_LOCK_PAUSE)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _temporary(path: Path, octets: bytes, like: os.stat_result | None = None) -> Iterator[Path]:
    """A file beside `path` with these contents, on disk; removed afterwards unless it was renamed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(octets)
            file.flush()
            if like is not None:
                _take_after(file.fileno(), like)
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _take_after(descriptor: int, like: os.stat_result) -> None:
    # An administrator edits as root what the proxy reads as a user of its own.
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (like.st_uid, like.st_gid):
        os.fchown(descriptor, like.st_uid, like.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(like.st_mode) & 0o640 | 0o600)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VaultError(f"{path}: {error.strerror or error}; check vault.file and its permissions") from None
