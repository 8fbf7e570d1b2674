"""How long a directory takes, whatever it says."""

from __future__ import annotations

from collections.abc import Awaitable
from time import monotonic

from popproxy.directories.entry import Answer, Directory, Entry
from popproxy.errors import Unavailable
from popproxy.observe.metrics import Metrics
from popproxy.types import Secret


class Measured:
    """A directory with a stop-watch."""

    def __init__(self, directory: Directory, metrics: Metrics) -> None:
        self.name = directory.name
        self.kind = directory.kind
        self._directory = directory
        self._durations = metrics.directory_duration

    async def verify(self, user: str, password: Secret) -> Answer:
        """See Directory."""
        return await self._timed(self._directory.verify(user, password))

    async def find(self, user: str) -> Answer:
        """See Directory."""
        return await self._timed(self._directory.find(user))

    async def _timed(self, asked: Awaitable[Answer]) -> Answer:
        started = monotonic()
        outcome = "unavailable"
        try:
            answer = await asked
            outcome = "found" if isinstance(answer, Entry) else "unknown" if answer.stranger else "refused"
            return answer
        except Unavailable:
            raise
        finally:
            self._durations.observe((self.name, outcome), monotonic() - started)
