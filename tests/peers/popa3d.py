"""A real popa3d with an mbox for each user: the backend that can do nothing (no CAPA, no AUTH, no STLS, no APOP).

popa3d takes its users from the system. It runs in a directory of its own as root directory (chroot), so that neither
the machine's users nor its mail are touched, and gets each connection as an inetd would pass it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.peers.canaries import canary
from tests.peers.process import LOGS, REPOSITORY, PeerMissingError, public_directory, require

_BINARY = REPOSITORY / ".venv/peers/popa3d/usr/sbin/popa3d"
_FIRST_UID = 61000
_MAIL_GID = 8
_PAM = "auth required pam_unix.so nodelay\naccount required pam_unix.so\n"


class Popa3d:
    """Listens on `port`. `users` maps names to passwords. Needs root, for chroot and for the users' identities."""

    def __init__(self, directory: Path, users: Iterable[str] = ("alice", "bob")) -> None:
        if os.geteuid() != 0:
            raise PeerMissingError("popa3d can only be run by root; run: sudo make test")
        self._root = directory
        self.users: dict[str, str] = {user: canary(user) for user in users}
        self._log = directory / "popa3d.log"
        _furnish(directory, self.users)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._children: list[subprocess.Popen[bytes]] = []
        self._thread = threading.Thread(target=self._serve, name="popa3d", daemon=True)
        self._thread.start()
        LOGS["popa3d"] = self._log

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection, self._log.open("ab") as log:
                self._children = [child for child in self._children if child.poll() is None]
                self._children.append(
                    subprocess.Popen(
                        [require("chroot"), str(self._root), "/usr/sbin/popa3d"],
                        stdin=connection.fileno(),
                        stdout=connection.fileno(),
                        stderr=log.fileno(),
                        env={},
                    )
                )

    def deliver(self, user: str, messages: Iterable[bytes]) -> None:
        """Replaces the user's maildrop. An mbox can hold messages with LF line ends only."""
        mbox = b"".join(b"From ada@example.org Mon Jul  6 09:30:00 2026\n" + message + b"\n" for message in messages)
        path = self._spool(user)
        path.write_bytes(mbox)
        os.chown(path, self._uid(user), _MAIL_GID)
        path.chmod(0o660)

    def maildrop(self, user: str) -> list[bytes]:
        """The messages that are still there."""
        parts = re.split(rb"^From [^\n]*\n", self._spool(user).read_bytes(), flags=re.MULTILINE)[1:]
        return [part.removesuffix(b"\n") for part in parts]

    def stop(self) -> None:
        """Ends the listener and every session."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.wait()
        LOGS.pop("popa3d", None)

    def _spool(self, user: str) -> Path:
        return self._root / "var/mail" / user

    def _uid(self, user: str) -> int:
        return _FIRST_UID + 1 + list(self.users).index(user)


def _furnish(root: Path, users: dict[str, str]) -> None:
    """Makes `root` a system that has popa3d, PAM and the users, and nothing else."""
    if not _BINARY.exists():
        raise PeerMissingError(f"{_BINARY} is missing; run: make setup")
    pam_unix = next((path for path in Path("/").glob("lib/*-linux-gnu*/security/pam_unix.so")), None)
    if pam_unix is None:
        raise PeerMissingError("libpam-modules is not installed; run: make setup")
    _install(root, _BINARY, "/usr/sbin/popa3d")
    _install(root, pam_unix, str(pam_unix))
    for library in _libraries(_BINARY) | _libraries(pam_unix):
        _install(root, Path(library), library)
    for directory in ("etc/pam.d", "var/mail", "var/lib/popa3d", "dev", "tmp"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    (root / "var/mail").chmod(0o1777)
    (root / "dev/null").touch()
    etc = root / "etc"
    (etc / "pam.d/popa3d").write_text(_PAM)
    (etc / "pam.d/other").write_text("auth required pam_deny.so\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nshadow: files\n")
    names = {"popa3d": _FIRST_UID, **{user: _FIRST_UID + number for number, user in enumerate(users, 1)}}
    lines = [f"{name}:x:{uid}:{_MAIL_GID}::/:/bin/sh\n" for name, uid in names.items()]
    (etc / "passwd").write_text("root:x:0:0::/:/bin/sh\n" + "".join(lines))
    (etc / "group").write_text(f"root:x:0:\nmail:x:{_MAIL_GID}:\n")
    shadow = etc / "shadow"
    shadow.touch(mode=0o600)
    shadow.write_text("".join(f"{user}:{_hash(secret)}:19000:0:99999:7:::\n" for user, secret in users.items()))
    for user in users:
        spool = root / "var/mail" / user
        spool.touch()
        os.chown(spool, names[user], _MAIL_GID)


def _install(root: Path, source: Path, target: str) -> None:
    destination = root / target.lstrip("/")
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, destination)


def _libraries(binary: Path) -> set[str]:
    listing = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"(/\S+) \(0x", listing))


def _hash(secret: str) -> str:
    command = [require("openssl"), "passwd", "-6", "-stdin"]
    return subprocess.run(command, input=secret, capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def popa3d(users: Iterable[str] = ("alice", "bob")) -> Iterator[Popa3d]:
    """A popa3d for the length of a with statement."""
    with public_directory("popa3d") as directory:
        server = Popa3d(directory, users)
        try:
            yield server
        finally:
            server.stop()
