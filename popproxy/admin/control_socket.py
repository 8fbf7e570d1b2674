"""The Unix socket itself: made with its permissions, never over somebody else's, taken away at the end."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import secrets
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from popproxy.errors import ConnectFailed

MODE = 0o660
"""Owner and group may connect; who may give commands is asked again, of each one that does."""
_SO_PEERGROUPS = 59  # Linux 4.13; Python has no name for it
_BACKLOG = 16


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel knows: the process that connected. `groups` holds the primary one too."""

    pid: int
    uid: int
    groups: frozenset[int]

    @property
    def name(self) -> str:
        """The user's name, or its number where it has none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)


@dataclass(frozen=True, slots=True)
class ControlSocket:
    """A bound and listening socket, and the file that it is."""

    path: Path
    sock: socket.socket
    inode: int

    @property
    def is_there(self) -> bool:
        """Does its name still lead to it?"""
        with contextlib.suppress(OSError):
            return os.lstat(self.path).st_ino == self.inode
        return False

    def close(self) -> None:
        """Take the file away, unless somebody has put another one in its place."""
        self.sock.close()
        with contextlib.suppress(OSError):
            if self.is_there:
                self.path.unlink()


def bind_control(path: Path, user: str | None, group: str | None) -> ControlSocket:
    """Listen at `path`, owned by `user` and `group` (None: as we are). As root, also makes the directory.

    What a popproxy that was killed has left behind is replaced. Raises ConnectFailed if the path is taken by a process
    that listens, by another user's socket or by anything else, and if it cannot be made.
    """
    try:
        uid, gid = _ids(user, group)
        if os.geteuid() == 0 and not path.parent.exists():
            path.parent.mkdir(mode=0o755)
            os.chown(path.parent, uid, -1)
        _require_free(path, uid)
        return _bind(path, uid, gid)
    except OSError as error:
        why = error.strerror or str(error)
        raise ConnectFailed(f"no control socket at {path}: {why}", "bind") from None


def peer_of(sock: socket.socket) -> Peer:
    """Who has connected."""
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    groups: tuple[int, ...] = ()
    with contextlib.suppress(OSError):  # an old kernel, or more groups than fit: then only the primary one counts
        octets = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
        groups = struct.unpack(f"{len(octets) // 4}I", octets)
    return Peer(pid, uid, frozenset((gid, *groups)))


def _ids(user: str | None, group: str | None) -> tuple[int, int]:
    try:
        account = pwd.getpwnam(user) if user else None
        gid = grp.getgrnam(group).gr_gid if group else account.pw_gid if account else -1
    except KeyError as error:
        raise ConnectFailed(f"no control socket: {error.args[0]}", "bind") from None
    return account.pw_uid if account else os.geteuid(), gid


def _require_free(path: Path, uid: int) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConnectFailed(f"{path} is there already and is no socket", "taken")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            if found.st_uid not in (uid, os.geteuid()):
                raise ConnectFailed(f"{path} is the socket of another user (id {found.st_uid})", "taken") from None
            return
        raise ConnectFailed(f"{path} belongs to a running process (pid {peer_of(probe).pid})", "taken")


def _give(temporary: Path, uid: int, gid: int) -> None:
    """Owner and mode, by a descriptor of what is certainly our socket.

    The directory belongs to the user that popproxy runs as. By its name, root could be led to give him any file: he
    need only put a link in the place of the socket.
    """
    descriptor = os.open(temporary, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            raise ConnectFailed(f"somebody has replaced {temporary} while it was made", "bind")
        itself = f"/proc/self/fd/{descriptor}"
        os.chmod(itself, 0o600)
        if os.geteuid() == 0 or gid not in (-1, os.getegid()):
            os.chown(itself, uid if os.geteuid() == 0 else -1, gid)
        os.chmod(itself, MODE)
    finally:
        os.close(descriptor)


def _bind(path: Path, uid: int, gid: int) -> ControlSocket:
    """Under a name of its own first: nobody can connect before owner and mode are right."""
    sock = socket.socket(socket.AF_UNIX)
    temporary = path.with_name(f".{secrets.token_hex(4)}")
    try:
        sock.bind(str(temporary))
        try:
            _give(temporary, uid, gid)
            sock.listen(_BACKLOG)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        sock.setblocking(False)
        return ControlSocket(path, sock, os.lstat(path).st_ino)
    except BaseException:
        sock.close()
        raise
