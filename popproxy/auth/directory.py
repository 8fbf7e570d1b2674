"""Passwords, and what proves them, that a directory judges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from popproxy.auth.names import NameRefused
from popproxy.auth.result import Accepted, AuthResult, CannotTell, Declined, Prospect, Rejected
from popproxy.directories.entry import DigestJudge, Directory, Refused
from popproxy.errors import Unavailable
from popproxy.sasl.credentials import ApopCredential, CramMd5Credential, Credential, PasswordCredential
from popproxy.types import Identity, Mechanism, Step

_JUDGES: Final = {"http": "the web service decides", "pam": "PAM decides"}


class DirectoryAuthenticator:
    """USER/PASS, PLAIN and LOGIN. The directory may give the user another name, and say where the maildrop is.

    `digests` is the same directory if it can judge APOP and CRAM-MD5 too.

    `vet` checks a name and brings it into the usual form. `decisive`: nobody is asked after this one, so whoever the
    directory does not know is rejected, not declined.
    """

    def __init__(
        self, directory: Directory, vet: Callable[[str], str], *, decisive: bool, digests: DigestJudge | None = None
    ) -> None:
        self.name = directory.kind
        self._directory = directory
        self._vet = vet
        self._decisive = decisive
        self._digests = digests

    def prospect(self, user: str) -> Prospect:
        """See Foretelling."""
        name = self._directory.name
        text = f"{name}: {_JUDGES.get(self._directory.kind, 'the directory decides')} about {user}"
        if self._directory.kind != "pam":
            text += "; what it says of mailbox and server goes before what follows"
        return Prospect(Step(text, ("directories", name)), Identity(user, user, Mechanism.USER))

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """See Authenticator."""
        try:
            if isinstance(credential, PasswordCredential):
                answer = await self._directory.verify(user, credential.password, credential.visit)
            elif self._digests is not None and isinstance(credential, ApopCredential | CramMd5Credential):
                answer = await self._digests.verify_digest(user, credential)
            else:
                return Declined()
        except Unavailable as error:
            return CannotTell(f"directory {error}")
        if isinstance(answer, Refused):
            return Declined() if answer.stranger and not self._decisive else Rejected(answer.reason)
        try:
            mailbox = user if answer.mailbox is None else self._vet(answer.mailbox)
        except NameRefused:
            return CannotTell(f"directory {self._directory.name}: the user's mailbox has a name that cannot be")
        return Accepted(Identity(mailbox, credential.authcid, credential.mechanism, location=answer.location))
