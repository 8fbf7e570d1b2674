"""Passwords that are judged here by hashes that somebody else keeps."""

from __future__ import annotations

from popproxy.auth.hashes import UnknownHash, verify
from popproxy.directories.entry import Answer, Entry, Finder, Refused
from popproxy.errors import Unavailable
from popproxy.state.executors import BoundedExecutor
from popproxy.types import AuthFailure, Secret, Visit


class HashJudge:
    """A Directory made of a Finder. `executor` verifies the hashes.

    Users that do not exist cost no hash: the delay of all failed logins hides that.
    """

    def __init__(self, finder: Finder, executor: BoundedExecutor) -> None:
        self.name = finder.name
        self.kind = finder.kind
        self._finder = finder
        self._executor = executor

    async def find(self, user: str) -> Answer:
        """See Directory."""
        return await self._finder.find(user)

    async def verify(self, user: str, password: Secret, visit: Visit | None = None) -> Answer:
        """See Directory. A hash behind ``!`` or ``*`` is that of a disabled account, as in /etc/shadow."""
        answer = await self._finder.find(user)
        if not isinstance(answer, Entry):
            return answer
        if answer.hash is None:
            return Refused()
        if answer.hash[0] in "!*":
            return Refused(AuthFailure.DISABLED)
        try:
            right = await self._executor.run(verify, password.reveal(), answer.hash)
        except UnknownHash as unknown:
            raise Unavailable(f"{self.name}: {unknown}", "directory") from None
        except MemoryError:
            raise Unavailable(f"{self.name}: no memory to verify a password hash", "directory") from None
        return answer if right else Refused(AuthFailure.BAD_CREDENTIALS)
