"""What a directory says of a user."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from popproxy.sasl.credentials import ApopCredential, CramMd5Credential
from popproxy.types import AuthFailure, Location, Secret, Visit


@dataclass(frozen=True, slots=True)
class Entry:
    """A user that the directory knows. What it says nothing about is None.

    `mailbox` is the user's own name, where it is not the one that was asked for; `location` says where the maildrop is;
    `hash` is the stored password hash, from directories that leave the judging to us.
    """

    mailbox: str | None = None
    location: Location | None = None
    hash: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Refused:
    """No such user, or not this password. `stranger`: it may be a user of another directory."""

    reason: AuthFailure = AuthFailure.BAD_CREDENTIALS
    stranger: bool = False


Answer = Entry | Refused


class Finder(Protocol):
    """A source of users and of routes. `name` is that of the configuration, `kind` one of ldap, sql, http, pam."""

    name: str
    kind: str

    async def find(self, user: str) -> Answer:
        """What there is about a user, no password asked. Raises Unavailable."""
        ...


class Directory(Finder, Protocol):
    """A source of users that judges their passwords."""

    async def verify(self, user: str, password: Secret, visit: Visit | None = None) -> Answer:
        """Judge a password. Raises Unavailable."""
        ...


class DigestJudge(Protocol):
    """A directory that judges what proves a password without saying it."""

    async def verify_digest(self, user: str, credential: ApopCredential | CramMd5Credential) -> Answer:
        """Judge a digest. Raises Unavailable."""
        ...
