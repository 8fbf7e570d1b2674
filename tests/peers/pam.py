"""A system of its own for PAM: users in /etc/passwd and /etc/shadow, services in /etc/pam.d, seen by nobody else.

Programs that are started inside run in a mount namespace, in which these files lie over those of the machine. So the
modules are the real ones, pam_unix among them, and the machine's users are not touched. It needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.peers.process import PeerMissingError, public_directory, require

T = TypeVar("T")

_CLONE_NEWNS = 0x00020000
_FIRST_UID = 61000
UNIX = "auth required pam_unix.so\naccount required pam_unix.so\n"


@dataclass(frozen=True)
class LocalUser:
    """A line of /etc/shadow. Days since 1970: `changed` 0 asks for a new password, `expires` closes the account."""

    password: str
    changed: int = 19000
    expires: str = ""
    locked: bool = False


class PamSystem:
    """`run` calls a function in a thread that lives in the namespace; so do the programs that it starts."""

    def __init__(self, directory: Path, users: Mapping[str, LocalUser], services: Mapping[str, str]) -> None:
        if os.geteuid() != 0:
            raise PeerMissingError("a mount namespace can only be made by root; run: sudo make test")
        self.services = directory / "pam.d"
        self.services.mkdir()
        (self.services / "other").write_text("auth required pam_deny.so\naccount required pam_deny.so\n")
        for name, text in services.items():
            (self.services / name).write_text(text)
        passwd = Path("/etc/passwd").read_text()
        shadow = "".join(f"{name}:{_shadow(user)}\n" for name, user in users.items())
        for number, name in enumerate(users):
            passwd += f"{name}:x:{_FIRST_UID + number}:65534::/:/bin/sh\n"
        (directory / "passwd").write_text(passwd)
        (directory / "shadow").touch(mode=0o600)
        (directory / "shadow").write_text(shadow)
        mounts = {directory / "passwd": "/etc/passwd", directory / "shadow": "/etc/shadow", self.services: "/etc/pam.d"}
        self._thread = ThreadPoolExecutor(1, "pam")
        self._thread.submit(_enter, mounts).result()

    def run(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises."""
        return self._thread.submit(function).result()

    def close(self) -> None:
        """The namespace ends with the last program in it."""
        self._thread.shutdown()


def _enter(mounts: Mapping[Path, str]) -> None:
    assert threading.current_thread() is not threading.main_thread()
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        cure = "run the tests as root, where root may mount (CAP_SYS_ADMIN)"
        raise PeerMissingError(f"no mount namespace: {os.strerror(ctypes.get_errno())}; {cure}")
    mount = require("mount")
    private = subprocess.run([mount, "--make-rprivate", "/"], capture_output=True, text=True, check=False)
    if private.returncode:  # in a chroot, whose root is nobody's mount: what is mounted would be seen by all
        cure = "mount --bind the directory onto itself before chroot"
        raise PeerMissingError(f"no private mounts: {private.stderr.strip()}; {cure}")
    for source, target in mounts.items():
        subprocess.run([mount, "--bind", str(source), target], check=True)


def _shadow(user: LocalUser) -> str:
    command = [require("openssl"), "passwd", "-6", "-stdin"]
    hashed = subprocess.run(command, input=user.password, capture_output=True, text=True, check=True).stdout.strip()
    return f"{'!' if user.locked else ''}{hashed}:{user.changed}:0:99999:7::{user.expires}:"


@contextlib.contextmanager
def pam_system(users: Mapping[str, LocalUser], services: Mapping[str, str]) -> Iterator[PamSystem]:
    """Such a system for the length of a with statement."""
    with public_directory("pam") as directory:
        system = PamSystem(directory, users, services)
        try:
            yield system
        finally:
            system.close()
