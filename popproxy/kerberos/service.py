"""What the acceptor stands on: its own principals, the keytab, the replay cache. Common to GSSAPI and AP-REQ."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from popproxy.errors import ConfigError, Problem
from popproxy.kerberos.refusal import Refusal

SERVICE: Final = "pop"
"""Of GSSAPI (RFC 5034) and of KPOP, in the first part of the principal."""

CACHE_FILE: Final = "popproxy.rcache2"


@dataclass(frozen=True, slots=True)
class ServicePrincipals:
    """The names that tickets may be for: ``pop/host@REALM``, or ``pop/host`` for any realm that the keytab has.

    Hosts that share one key (the accounts of Active Directory, where every name has the same) must all be listed: which
    of the names a ticket was for cannot be told, and the library then reports the first one in the keytab.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        problems = [
            Problem("", "principals", f"{name!r} is not a POP3 service", f"write {SERVICE}/host.example.org@REALM")
            for name in self.names
            if not name.startswith(f"{SERVICE}/") or name.rpartition("/")[2].partition("@")[0] == ""
        ]
        if not self.names:
            problems.append(Problem("", "principals", "there is none", f"write {SERVICE}/host.example.org@REALM"))
        if problems:
            raise ConfigError(problems)

    def refuse(self, server: str) -> Refusal | None:
        """Why a ticket for `server` (with realm) is not for us; None if it is."""
        name = server.rpartition("@")[0]
        if server in self.names or name in self.names:
            return None
        if any(own.partition("@")[0] == name for own in self.names):
            return Refusal.WRONG_REALM
        return Refusal.WRONG_SERVICE


class ReplayCache:
    """MIT's replay cache in a file that all processes of the host share, for GSSAPI and AP-REQ alike.

    Without it a ticket caught on the wire opens the maildrop again for five minutes (RFC 4120 section 10), so nothing
    is accepted while it cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        """Make the file if there is none. Raises ConfigError if that cannot be done, or others could tamper with it."""
        self.directory = directory
        self.path = directory / CACHE_FILE
        self.name = f"file2:{self.path}"
        problem = self._problem()
        if problem is not None:
            raise ConfigError([problem])

    def works(self) -> bool:
        """Can it be written just now?"""
        return self._problem() is None

    def _problem(self) -> Problem | None:
        where = str(self.directory)
        try:
            directory = self.directory.stat()
            if not stat.S_ISDIR(directory.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            cure = "create it, owned and writable by the user popproxy runs as"
            return Problem(where, "", f"the replay cache cannot be kept here: {error.strerror}", cure)
        try:
            file = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if directory.st_mode & stat.S_IWOTH or file.st_mode & (stat.S_IWOTH | stat.S_IWGRP):
            return Problem(where, "", "others can write the replay cache", f"chmod 700 {where}, chmod 600 {self.path}")
        return None


def check_keytab(keytab: Path) -> None:
    """Raise ConfigError unless the file can be read."""
    try:
        with keytab.open("rb"):
            pass
    except OSError as error:
        cure = "make it with ktadd (MIT), ktpass (Active Directory) or ipa-getkeytab, readable by popproxy's user only"
        raise ConfigError([Problem(str(keytab), "", f"the keytab cannot be read: {error.strerror}", cure)]) from None


def readable(keytab: Path) -> bool:
    """Can the keytab be read just now?"""
    try:
        check_keytab(keytab)
    except ConfigError:
        return False
    return True


def diagnose(reason: Refusal | None, keytab: Path, cache: ReplayCache) -> tuple[Refusal, bool]:
    """The final reason, and whether the fault is ours.

    The library does not always tell a broken file of ours from a broken token: so the files are looked at again.
    """
    if reason is Refusal.UNAVAILABLE or (reason is None and not cache.works()):
        return Refusal.UNAVAILABLE, True
    if reason in (None, Refusal.KEYTAB, Refusal.WRONG_SERVICE) and not readable(keytab):
        return Refusal.KEYTAB, True
    return reason or Refusal.GARBAGE, False
