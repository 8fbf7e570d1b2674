"""The users file has the last word on accounts: whom it disables does not get in, whoever has vouched for him."""

from __future__ import annotations

from typing import Literal

from popproxy.auth.users_file import DISABLED, UsersFile
from popproxy.state.executors import BoundedExecutor


class Accounts:
    """Asked about everybody who has proved who he is: by a ticket, a Kerberos password, a secret of the vault."""

    def __init__(self, users: UsersFile, executor: BoundedExecutor) -> None:
        self._users = users
        self._executor = executor

    async def disabled(self, user: str) -> bool:
        """Does the file disable this canonical name? Who is not in it is not disabled.

        Raises Unavailable if the file has changed and there is no thread to read it.
        """
        if self._users.is_stale():
            await self._executor.run(self._users.refresh)
        return self.state(user) == "disabled"

    def state(self, user: str) -> Literal["open", "disabled", "unknown"]:
        """What the version of the file that was read last says."""
        stored = self._users.lookup(user)
        return "unknown" if stored is None else "disabled" if stored == DISABLED else "open"
