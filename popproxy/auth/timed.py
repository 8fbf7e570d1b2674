"""Measures how long an authenticator takes, whatever it says."""

from __future__ import annotations

from time import monotonic
from typing import Any

from popproxy.auth.proof import Prover
from popproxy.auth.result import Authenticator, AuthResult, Declined
from popproxy.observe.metrics import Metrics
from popproxy.sasl.credentials import Credential


class Timed:
    """An authenticator with a stop-watch; what it declines is not counted."""

    def __init__(self, authenticator: Authenticator, metrics: Metrics) -> None:
        self.name = authenticator.name
        self._authenticator = authenticator
        self._durations = metrics.auth_duration
        self._durations.expect(self.name)

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """See Authenticator."""
        started = monotonic()
        result = await self._authenticator.authenticate(credential, user)
        if not isinstance(result, Declined):
            self._durations.observe(self.name, monotonic() - started)
        return result


class TimedProver:
    """The same for what judges certificates and tokens."""

    def __init__(self, prover: Prover, metrics: Metrics) -> None:
        self.name = prover.name
        self._prover = prover
        self._durations = metrics.auth_duration
        self._durations.expect(self.name)

    async def prove(self, credential: Any) -> AuthResult:
        """See Prover."""
        started = monotonic()
        result = await self._prover.prove(credential)
        self._durations.observe(self.name, monotonic() - started)
        return result
