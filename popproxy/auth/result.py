"""What an authenticator can say, and what it looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from popproxy.sasl.credentials import Credential
from popproxy.types import AuthFailure, Identity, Step


@dataclass(frozen=True, slots=True)
class Accepted:
    """It is this one. `identity.proven` is False if only the backend can tell (pass-through)."""

    identity: Identity


@dataclass(frozen=True, slots=True)
class Rejected:
    """Certainly not. The client is told nothing but [AUTH]; `reason` is for the audit record."""

    reason: AuthFailure = AuthFailure.BAD_CREDENTIALS


@dataclass(frozen=True, slots=True)
class CannotTell:
    """The authenticator is out of order (file unreadable, queue full, deadline passed).

    Never a rejection: the client is told [SYS/TEMP]. `reason` is for the audit record.
    """

    detail: str
    reason: AuthFailure = AuthFailure.UNAVAILABLE


@dataclass(frozen=True, slots=True)
class Declined:
    """Not my user, or not my kind of credential: ask the next one."""


AuthResult = Accepted | Rejected | CannotTell | Declined


@dataclass(frozen=True, slots=True)
class Prospect:
    """What an authenticator would make of a password of some user, as far as that can be told without one.

    `step` says it. `identity` is who would be logged in if the password is right; None if whoever comes is refused or
    passed on, as the step's outcome says.
    """

    step: Step
    identity: Identity | None = None
    before: tuple[Step, ...] = ()
    """How it came to that."""


@runtime_checkable
class Foretelling(Protocol):
    """An authenticator of passwords that can say beforehand how it would decide."""

    name: str

    def prospect(self, user: str) -> Prospect:
        """For the canonical name `user`. Reads what the authenticator reads; asks nobody."""
        ...


class Authenticator(Protocol):
    """One way to judge a credential. `name` is a metric label: a closed set."""

    name: str

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """Judge `credential` for the canonical name `user`. Raises nothing but cancellation."""
        ...
