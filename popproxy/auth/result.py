"""What an authenticator can say, and what it looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from popproxy.sasl.credentials import Credential
from popproxy.types import AuthFailure, Identity


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


class Authenticator(Protocol):
    """One way to judge a credential. `name` is a metric label: a closed set."""

    name: str

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """Judge `credential` for the canonical name `user`. Raises nothing but cancellation."""
        ...
