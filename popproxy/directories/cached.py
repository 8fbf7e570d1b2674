"""A directory that is not asked again about a password that it has just accepted."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from dataclasses import replace

from popproxy.directories.entry import Answer, Directory, Entry
from popproxy.state.remembered import Remembered
from popproxy.types import Secret, Visit

Kept = tuple[float, Entry]
"""When a directory was asked (seconds since 1970), and what it said."""


class CachedDirectory:
    """See Directory. While the directory is down, those who were let in a moment ago get in still.

    `whence`: the directory judges by where a login comes from, too, so that an answer holds for there alone. An answer
    with a password for the server is not remembered: no password is kept here. Nor does one count from before `since`
    (seconds since 1970, by user), when his mail was moved. `hits` counts by (name, hit or miss).
    """

    def __init__(
        self, directory: Directory, remembered: Remembered[Kept], hits: MutableMapping[tuple[str, str], float], *,
        whence: bool, since: Callable[[str], float],
    ) -> None:  # fmt: skip
        self.name = directory.name
        self.kind = directory.kind
        self._directory = directory
        self._remembered = remembered
        self._hits = hits
        self._whence = whence
        self._since = since

    async def find(self, user: str) -> Answer:
        """See Directory; always asked."""
        return await self._directory.find(user)

    async def verify(self, user: str, password: Secret, visit: Visit | None = None) -> Answer:
        """See Directory."""
        remembered = self._remembered
        digest = remembered.digest(user, password, *(_circumstances(visit) if self._whence else ()))
        kept = remembered.recall(digest)
        known = None if kept is None or kept[0] <= self._moved(user, kept[1]) else kept[1]
        self._hits[(self.name, "miss" if known is None else "hit")] += 1
        if known is not None:
            return known
        asked, now = remembered.now(), time.time()
        answer = await self._directory.verify(user, password, visit)
        if isinstance(answer, Entry) and (answer.location is None or answer.location.password is None):
            remembered.remember(digest, (now, replace(answer, hash=None)), asked)
        return answer

    def _moved(self, user: str, entry: Entry) -> float:
        return max(self._since(user), 0.0 if entry.mailbox is None else self._since(entry.mailbox))


def _circumstances(visit: Visit | None) -> tuple[str, ...]:
    if visit is None:
        return ()
    return visit.client.host, "tls" if visit.tls else "", "" if visit.certificate is None else visit.certificate.hex()
