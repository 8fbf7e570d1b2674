"""Passwords that the KDC judges. Imports no library of Kerberos: what asks the KDC is handed in."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Protocol

from popproxy.auth.names import NameRefused
from popproxy.auth.result import Accepted, AuthResult, CannotTell, Declined, Prospect, Rejected
from popproxy.errors import Unavailable
from popproxy.kerberos.mapping import Mapped, PrincipalMap, RealmRule
from popproxy.kerberos.password import KDC_NOT_PROVEN, PasswordRefusal, PasswordRefused
from popproxy.sasl.credentials import Credential, PasswordCredential
from popproxy.state.remembered import Remembered
from popproxy.types import AuthFailure, Identity, Mechanism, Secret, Step


class Kdc(Protocol):
    """Who asks the KDC: KdcPassword."""

    async def check(self, user: str, password: Secret) -> str:
        """The principal that `user` has proved to be. Raises PasswordRefused and Unavailable."""
        ...


class RememberingKdc:
    """A Kdc that is not asked again about a password that was right a moment ago. `hits` counts hit and miss."""

    def __init__(self, kdc: Kdc, remembered: Remembered[str], hits: MutableMapping[tuple[str, str], float]) -> None:
        self._kdc = kdc
        self._remembered = remembered
        self._hits = hits

    async def check(self, user: str, password: Secret) -> str:
        """See Kdc."""
        remembered = self._remembered
        digest = remembered.digest(user, password)
        known = remembered.recall(digest)
        self._hits[("kerberos", "miss" if known is None else "hit")] += 1
        if known is not None:
            return known
        asked = remembered.now()
        principal = await self._kdc.check(user, password)
        remembered.remember(digest, principal, asked)
        return principal


class KerberosPasswordAuthenticator:
    """USER/PASS, PLAIN and LOGIN, checked against the KDC; the principal is mapped to a mailbox as one with a ticket.

    `decisive`: nobody is asked after this one, so a user whom the KDC does not let in is rejected, not declined.
    """

    name = "kerberos"

    def __init__(
        self, kdc: Kdc, principals: PrincipalMap, realms: Sequence[RealmRule], default_domain: str | None,
        vet: Callable[[str], str], *, decisive: bool,
    ) -> None:  # fmt: skip
        self._kdc = kdc
        self._principals = principals
        self._realms = realms
        self._default_domain = default_domain
        self._vet = vet
        self._decisive = decisive

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """See Authenticator."""
        if not isinstance(credential, PasswordCredential):
            return Declined()
        claimed = self._principal(user)
        if claimed is None:
            return Declined()
        try:
            principal = await self._kdc.check(claimed, credential.password)
        except PasswordRefused as refused:
            if refused.reason is PasswordRefusal.WRONG and not self._decisive:
                return Declined()
            return Rejected(AuthFailure.BAD_CREDENTIALS)
        except Unavailable as error:
            unproven = error.reason == KDC_NOT_PROVEN
            return CannotTell(str(error), AuthFailure.KDC_NOT_PROVEN if unproven else AuthFailure.UNAVAILABLE)
        mapped = self._principals.map(principal)
        if not isinstance(mapped, Mapped):
            return Rejected(AuthFailure.NOT_MAPPED)
        try:
            mailbox = self._vet(mapped.mailbox)
        except NameRefused as refused_name:
            return Rejected(refused_name.reason)
        return Accepted(Identity(mailbox, credential.authcid, credential.mechanism, principal=principal))

    def prospect(self, user: str) -> Prospect:
        """See Foretelling."""
        claimed = self._principal(user)
        if claimed is None:
            return Prospect(Step("kerberos: its domain is that of no realm", (), "passed"))
        asked = Step(f"kerberos: the KDC decides about {claimed}")
        mapped = self._principals.map(claimed)
        if not isinstance(mapped, Mapped):
            return Prospect(mapped.steps[-1], before=(asked, *mapped.steps[:-1]))
        try:
            mailbox = self._vet(mapped.mailbox)
        except NameRefused as refused:
            return Prospect(
                Step(f"refused: the mailbox cannot be a name here ({refused.reason})", (), "refused"),
                before=(asked, *mapped.steps),
            )
        identity = Identity(mailbox, user, Mechanism.USER, principal=claimed)
        return Prospect(mapped.steps[-1], identity, (asked, *mapped.steps[:-1]))

    def _principal(self, user: str) -> str | None:
        """The principal that a user's canonical name stands for; None if its domain is that of no realm."""
        local, at, domain = user.rpartition("@")
        if not at:
            return f"{user}@{self._realms[0].realm}"
        for rule in self._realms:
            known = {rule.realm.lower(), (rule.domain or self._default_domain or rule.realm).lower()}
            if domain.lower() in known and "@" not in local:
                return f"{local}@{rule.realm}"
        return None
