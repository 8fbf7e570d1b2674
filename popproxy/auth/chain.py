"""Several authenticators asked one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from popproxy.auth.result import (
    Accepted,
    Authenticator,
    AuthResult,
    CannotTell,
    Declined,
    Foretelling,
    Prospect,
    Rejected,
)
from popproxy.sasl.credentials import Credential
from popproxy.types import AuthFailure


class Chain:
    """The first decisive answer wins; nobody being able to decide is a rejection, somebody being out of order is not.

    After an authenticator that cannot tell, the later ones are still asked, but only a proven acceptance counts:

    * a later rejection is no rejection, since the one out of order might have accepted;
    * pass-through accepts anything, and the backend would then refuse, as a wrong password, one that only the
      authenticator out of order knows; or accept one that it would have refused, say of a disabled account, which
      makes filling its queue a way around it.
    """

    name = "chain"

    def __init__(self, authenticators: Sequence[Authenticator]) -> None:
        self._authenticators = tuple(authenticators)

    def prospects(self, user: str) -> Iterator[Prospect]:
        """What each judge of passwords would make of one of this user, up to the judge that decides."""
        for authenticator in self._authenticators:
            if isinstance(authenticator, Foretelling):
                prospect = authenticator.prospect(user)
                yield prospect
                if prospect.step.outcome != "passed":
                    return

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """See Authenticator; never Declined."""
        in_doubt: CannotTell | None = None
        for authenticator in self._authenticators:
            result = await authenticator.authenticate(credential, user)
            match result:
                case Declined():
                    continue
                case CannotTell():
                    in_doubt = in_doubt or result
                case Accepted(identity) if in_doubt is None or identity.proven:
                    return result
                case _:
                    return in_doubt or result
        return in_doubt or Rejected(AuthFailure.BAD_CREDENTIALS)


class ByDomain:
    """A chain for the users of each domain that has one, and one for all others."""

    name = "domains"

    def __init__(self, domains: Mapping[str, Authenticator], others: Authenticator) -> None:
        self._domains = {domain.lower(): chain for domain, chain in domains.items()}
        self._others = others

    async def authenticate(self, credential: Credential, user: str) -> AuthResult:
        """See Authenticator."""
        chain = self._domains.get(user.rpartition("@")[2].lower(), self._others) if "@" in user else self._others
        return await chain.authenticate(credential, user)
