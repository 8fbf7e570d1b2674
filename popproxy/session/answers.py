"""What a client hears that is not let in.

It learns one of three things: its credentials are wrong ([AUTH], one text and one duration for every cause); we cannot
tell just now ([SYS/TEMP]); or it will never work like this ([SYS/PERM]). A failure of ours or of the backend's is never
shown as a wrong password: clients would ask for it again, and people lock themselves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from popproxy.types import CloseReason


@dataclass(frozen=True, slots=True)
class LoginFailed:
    """What the client is told. `counts` is 1 for a failure that counts towards the limit of tries."""

    text: str
    code: str | None
    counts: int = 0
    final: CloseReason | None = None

    @property
    def answer(self) -> str:
        """As it stands behind -ERR."""
        return self.text if self.code is None else f"[{self.code}] {self.text}"


WRONG: Final = LoginFailed("authentication failed", "AUTH", counts=1)
TRY_LATER: Final = LoginFailed("temporary problem, try again later", "SYS/TEMP")
THROTTLED: Final = LoginFailed("too many wrong passwords, try again later", "SYS/TEMP", counts=1)
NOT_RECORDED: Final = LoginFailed(TRY_LATER.text, "SYS/TEMP", final=CloseReason.AUDIT)
NO_SERVER: Final = LoginFailed("no mail server for you", "SYS/PERM")
NO_WAY_IN: Final = LoginFailed("no way to log in at your mail server", "SYS/PERM")
TOO_MANY_SESSIONS: Final = LoginFailed("you have too many sessions open", "IN-USE")
TOO_SOON: Final = LoginFailed("too soon after the last login", "LOGIN-DELAY")
IN_USE: Final = LoginFailed("maildrop is in use", "IN-USE")
