"""What sessions need to take Kerberos tickets: the acceptors, and the rules from principals to mailboxes.

Nothing here imports GSSAPI: without Kerberos in the configuration its libraries need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from popproxy.auth.names import NameRefused
from popproxy.kerberos.authenticator import authenticator_tag
from popproxy.kerberos.evidence import Evidence
from popproxy.kerberos.mapping import Mapped, PrincipalMap
from popproxy.kerberos.refusal import Refusal
from popproxy.sasl.credentials import Credential, GssapiCredential, KpopCredential
from popproxy.sasl.gssapi import GssapiExchange, LayerOffer
from popproxy.state.shared import Claim, SharedState
from popproxy.types import AuthFailure

if TYPE_CHECKING:
    from popproxy.kerberos.acceptor import Acceptor, GssContext
    from popproxy.kerberos.apreq import ApReqVerifier

REASONS: Final = {
    Refusal.REPLAY: AuthFailure.KERBEROS_REPLAY,
    Refusal.SKEW: AuthFailure.KERBEROS_SKEW,
    Refusal.EXPIRED: AuthFailure.KERBEROS_EXPIRED,
    Refusal.WRONG_SERVICE: AuthFailure.KERBEROS_SERVICE,
    Refusal.WRONG_REALM: AuthFailure.KERBEROS_REALM,
    Refusal.KEYTAB: AuthFailure.KERBEROS_KEYTAB,
    Refusal.GARBAGE: AuthFailure.KERBEROS_GARBAGE,
    Refusal.CHANNEL_BINDING: AuthFailure.CHANNEL_BINDING,
    Refusal.UNAVAILABLE: AuthFailure.UNAVAILABLE,
}
"""For the audit record; the client hears the same about all of them."""

REPLAY_SECONDS: Final = 1200.0
"""How long a token is remembered: it is good for twice the clock skew allowed, which is five minutes by default."""

Ticket = GssapiCredential | KpopCredential


@dataclass(frozen=True, slots=True)
class Tickets:
    """Everything about Kerberos that the sessions of a listener share.

    `layers` are for connections without TLS. `bind` and `require_binding`: tickets are bound to TLS, must be.
    """

    acceptor: Acceptor
    verifier: ApReqVerifier
    principals: PrincipalMap
    layers: LayerOffer
    bind: bool = True
    require_binding: bool = False
    shared: bool = False  # other replicas take tickets for the same keys
    delegation: bool = False  # what it takes to act for the client is kept until the login is over

    def usable(self, *, encrypted: bool) -> bool:
        """Could GSSAPI succeed on this connection?"""
        return encrypted or not self.require_binding

    def exchange(self, *, encrypted: bool) -> GssapiExchange:
        """A new SASL exchange. Under TLS there is no other layer (RFC 4752 section 3)."""
        return GssapiExchange(LayerOffer() if encrypted else self.layers)


async def used_elsewhere(state: SharedState, tickets: Tickets, token: bytes, *, bound: bool) -> Refusal | None:
    """Why a token that has been accepted here is refused all the same, where other replicas have the same keys.

    The replay cache of this host has passed it. If nobody can say whether another replica has taken it, only one that
    is `bound` to its TLS channel is good: it has not been seen by anybody between.
    """
    if not tickets.shared:
        return None
    tag = authenticator_tag(token)
    if tag is None:
        return Refusal.GARBAGE
    match await state.claim("kerberos", tag.hex(), REPLAY_SECONDS):
        case Claim.REPEATED:
            return Refusal.REPLAY
        case Claim.FIRST_HERE if not bound:
            return Refusal.UNAVAILABLE
    return None


def forget_evidence(credential: Credential) -> None:
    """The login is over: what it takes to act for the client is not needed any more."""
    if isinstance(credential, GssapiCredential):
        cast("GssContext", credential.context).forget()
    elif isinstance(credential, KpopCredential) and credential.evidence is not None:
        cast("Evidence", credential.evidence).clear()


def user_of(ticket: Ticket, principals: PrincipalMap, vet: Callable[[str], str]) -> str:
    """The canonical name of the user that a ticket and its authzid speak of; `vet` makes names canonical.

    The authzid may be any name of the client's own: the mailbox, the principal, or the principal without its realm.
    Raises NameRefused with NOT_MAPPED or AUTHZID, and whatever `vet` raises.
    """
    mapped = principals.map(ticket.principal)
    if not isinstance(mapped, Mapped):
        raise NameRefused(AuthFailure.NOT_MAPPED)
    user = vet(mapped.mailbox)
    wanted = ticket.authzid
    if not wanted or vet(wanted) == user:
        return user
    realm = ticket.principal.rpartition("@")[2]
    named = principals.map(wanted if "@" in wanted else f"{wanted}@{realm}")
    if not isinstance(named, Mapped) or vet(named.mailbox) != user:
        raise NameRefused(AuthFailure.AUTHZID)
    return user
