"""Measures how long an authenticator takes, whatever it says."""

from __future__ import annotations

from time import monotonic

from popproxy.auth.result import Authenticator, AuthResult, Declined
from popproxy.observe.metrics import Metrics
from popproxy.sasl.credentials import Credential


class Timed:
    """An authenticator with a stop-watch; what it declines is not counted."""

    def __init__(self, authenticator: Authenticator, metrics: Metrics) -> None:
        self.name = authenticator.name
        self._authenticator = authenticator
        self._durations = metrics.auth_duration

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """See Authenticator."""
        started = monotonic()
        result = await self._authenticator.authenticate(credential, user)
        if not isinstance(result, Declined):
            self._durations.observe(self.name, monotonic() - started)
        return result
