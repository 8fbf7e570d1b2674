"""Credentials that say themselves whose they are: no name has to be vetted before somebody can judge them."""

from __future__ import annotations

from typing import Any, Protocol

from popproxy.auth.result import AuthResult


class Prover(Protocol):
    """Judges one kind of such a credential: certificates, tokens."""

    @property
    def name(self) -> str:
        """A metric label."""
        ...

    async def prove(self, credential: Any) -> AuthResult:
        """Whose is it? An Accepted identity has a canonical name. Raises nothing but cancellation."""
        ...
