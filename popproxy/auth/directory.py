"""Passwords that a directory judges."""

from __future__ import annotations

from collections.abc import Callable

from popproxy.auth.names import NameRefused
from popproxy.auth.result import Accepted, AuthResult, CannotTell, Declined, Prospect, Rejected
from popproxy.directories.entry import Directory, Refused
from popproxy.errors import Unavailable
from popproxy.sasl.credentials import Credential, PasswordCredential
from popproxy.types import Identity, Mechanism, Step


class DirectoryAuthenticator:
    """USER/PASS, PLAIN and LOGIN. The directory may give the user another name, and say where the maildrop is.

    `vet` checks a name and brings it into the usual form. `decisive`: nobody is asked after this one, so whoever the
    directory does not know is rejected, not declined.
    """

    def __init__(self, directory: Directory, vet: Callable[[str], str], *, decisive: bool) -> None:
        self.name = directory.kind
        self._directory = directory
        self._vet = vet
        self._decisive = decisive

    def prospect(self, user: str) -> Prospect:
        """See Foretelling."""
        name = self._directory.name
        text = (
            f"{name}: the directory decides about {user}; what it says of mailbox and server goes before what follows"
        )
        return Prospect(Step(text, ("directories", name)), Identity(user, user, Mechanism.USER))

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """See Authenticator."""
        if not isinstance(credential, PasswordCredential):
            return Declined()
        try:
            answer = await self._directory.verify(user, credential.password)
        except Unavailable as error:
            return CannotTell(f"directory {error}")
        if isinstance(answer, Refused):
            return Declined() if answer.stranger and not self._decisive else Rejected(answer.reason)
        try:
            mailbox = user if answer.mailbox is None else self._vet(answer.mailbox)
        except NameRefused:
            return CannotTell(f"directory {self._directory.name}: the user's mailbox has a name that cannot be")
        return Accepted(Identity(mailbox, credential.authcid, credential.mechanism, location=answer.location))
