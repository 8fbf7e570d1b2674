"""A directory that is not asked again about a password that it has just accepted."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace

from popproxy.directories.entry import Answer, Directory, Entry
from popproxy.state.remembered import Remembered
from popproxy.types import Secret, Visit


class CachedDirectory:
    """See Directory. While the directory is down, those who were let in a moment ago get in still.

    `whence`: the directory judges by where a login comes from, too, so that an answer holds for there alone. An answer
    with a password for the server is not remembered: no password is kept here. `hits` counts by (name, hit or miss).
    """

    def __init__(
        self, directory: Directory, remembered: Remembered[Entry], hits: MutableMapping[tuple[str, str], float], *,
        whence: bool,
    ) -> None:  # fmt: skip
        self.name = directory.name
        self.kind = directory.kind
        self._directory = directory
        self._remembered = remembered
        self._hits = hits
        self._whence = whence

    async def find(self, user: str) -> Answer:
        """See Directory; always asked."""
        return await self._directory.find(user)

    async def verify(self, user: str, password: Secret, visit: Visit | None = None) -> Answer:
        """See Directory."""
        remembered = self._remembered
        digest = remembered.digest(user, password, *(_circumstances(visit) if self._whence else ()))
        known = remembered.recall(digest)
        self._hits[(self.name, "miss" if known is None else "hit")] += 1
        if known is not None:
            return known
        asked = remembered.now()
        answer = await self._directory.verify(user, password, visit)
        if isinstance(answer, Entry) and (answer.location is None or answer.location.password is None):
            remembered.remember(digest, replace(answer, hash=None), asked)
        return answer


def _circumstances(visit: Visit | None) -> tuple[str, ...]:
    if visit is None:
        return ()
    return visit.client.host, "tls" if visit.tls else "", "" if visit.certificate is None else visit.certificate.hex()
