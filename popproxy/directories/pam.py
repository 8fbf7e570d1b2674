"""PAM: what is asked, and what the answers mean. The asking itself is done by pam_worker."""

from __future__ import annotations

import base64
from typing import Any, Final

from popproxy.config.model_directories import Pam
from popproxy.directories.entry import Answer, Entry, Refused
from popproxy.directories.placeholders import can_fill, fill
from popproxy.errors import Unavailable
from popproxy.state.helper import Helper
from popproxy.types import AuthFailure, Secret, Visit

WORKER: Final = "popproxy.directories.pam_worker"
_NOT_LOCAL: Final = "/:"
"""What no user of the system has in his name, and modules take for a path or a field of a table."""


def worker_settings(config: Pam) -> dict[str, Any]:
    """What pam_worker must know."""
    return {"service": config.service}


class PamDirectory:
    """See Directory. PAM knows nothing of mailboxes and servers, and nobody without a password."""

    kind = "pam"

    def __init__(self, name: str, config: Pam, helper: Helper) -> None:
        self.name = name
        self._config = config
        self._helper = helper

    async def verify(self, user: str, password: Secret, visit: Visit | None = None) -> Answer:
        """Authentication, and then the account: expired, locked, not at this time. See Directory."""
        if not password:
            return Refused(AuthFailure.EMPTY)
        if not can_fill(self._config.user, user):
            return Refused(stranger=True)
        name = fill(self._config.user, user, str)
        if name.startswith("-") or any(character in name for character in _NOT_LOCAL):
            return Refused(stranger=True)
        question = {
            "user": name, "password": base64.b64encode(password.reveal()).decode(),
            "host": "" if visit is None else visit.client.host,
        }  # fmt: skip
        answer = await self._helper.ask(question)
        match answer["result"]:
            case "accepted":
                return Entry()
            case "unknown":
                return Refused(stranger=True)
            case "refused":
                return Refused(AuthFailure(answer["reason"]))
            case _:
                raise Unavailable(f"{self.name}: {answer['why']}", "directory")

    async def find(self, user: str) -> Answer:
        """PAM cannot be asked about users who are not there. Raises Unavailable."""
        raise Unavailable(f"{self.name}: PAM knows no places", "directory")
