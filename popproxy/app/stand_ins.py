"""In place of what would ask others about a login, for those who only want to know what would be asked."""

from __future__ import annotations

from popproxy.directories.entry import Answer
from popproxy.errors import Unavailable
from popproxy.types import Secret, Visit


class Shown:
    """In place of what is kept of a client's ticket; such a client forwards one, too."""

    evidence = delegated = "a ticket"


SHOWN = Shown()


class NoSources:
    """In place of what gets tickets for servers: it can always be asked."""

    def forwarded(self, user: str, delegated: object) -> object:
        return self

    def delegated(self, user: str, evidence: object, forwarded: object) -> object:
        return self

    def transition(self, user: str) -> object:
        return self

    def service(self) -> object:
        return self


class NoTokens:
    """In place of what gets access tokens: it can always be asked."""

    def own(self) -> object:
        return self

    def of(self, user: str, refresh_token: Secret) -> object:
        return self


class NobodyAsked:
    """In place of what asks the KDC."""

    async def check(self, user: str, password: Secret) -> str:
        raise Unavailable("the KDC is not asked here", "kdc")


class SilentDirectory:
    """In place of what asks a directory."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind

    async def verify(self, user: str, password: Secret, visit: Visit | None = None) -> Answer:
        raise Unavailable("no directory is asked here", "directory")

    async def find(self, user: str) -> Answer:
        raise Unavailable("no directory is asked here", "directory")
