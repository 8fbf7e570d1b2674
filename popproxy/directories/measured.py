"""How long a directory takes, whatever it says."""

from __future__ import annotations

from collections.abc import Awaitable
from time import monotonic

from popproxy.directories.entry import Answer, DigestJudge, Directory, Entry, Finder
from popproxy.observe.metrics import Metrics
from popproxy.sasl.credentials import ApopCredential, CramMd5Credential
from popproxy.types import Secret, Visit


class MeasuredFinder:
    """A finder with a stop-watch."""

    def __init__(self, finder: Finder, metrics: Metrics) -> None:
        self.name = finder.name
        self.kind = finder.kind
        self._finder = finder
        self._durations = metrics.directory_duration

    async def find(self, user: str) -> Answer:
        """See Finder."""
        return await self._timed(self._finder.find(user))

    async def _timed(self, asked: Awaitable[Answer]) -> Answer:
        started = monotonic()
        outcome = "unavailable"
        try:
            answer = await asked
            outcome = "found" if isinstance(answer, Entry) else "unknown" if answer.stranger else "refused"
            return answer
        finally:
            self._durations.observe((self.name, outcome), monotonic() - started)


class Measured(MeasuredFinder):
    """A directory with a stop-watch."""

    def __init__(self, directory: Directory, metrics: Metrics) -> None:
        super().__init__(directory, metrics)
        self._directory = directory

    async def verify(self, user: str, password: Secret, visit: Visit | None = None) -> Answer:
        """See Directory."""
        return await self._timed(self._directory.verify(user, password, visit))


class MeasuredDigests(MeasuredFinder):
    """A judge of digests with a stop-watch."""

    def __init__(self, finder: Finder, judge: DigestJudge, metrics: Metrics) -> None:
        super().__init__(finder, metrics)
        self._judge = judge

    async def verify_digest(self, user: str, credential: ApopCredential | CramMd5Credential) -> Answer:
        """See DigestJudge."""
        return await self._timed(self._judge.verify_digest(user, credential))
