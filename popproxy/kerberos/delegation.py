"""Tickets for backends: the user's, by what the client has brought or the KDC lets us have, and the proxy's own.

Four ways, each a strategy of its own, since each needs another right at the KDC:

    kerberos-forwarded    the client has forwarded its ticket-granting ticket; the KDC knows nothing of us
    kerberos-delegated    S4U2Proxy: the KDC takes the client's ticket for us as leave to act for it at listed services
    kerberos-transition   S4U2Self, then S4U2Proxy: we vouch for a user who has shown us no ticket
    kerberos-service      no user at all: our own ticket, and the name of the user beside it

(MS-SFU sections 1.3.1 to 1.3.3; MIT: "constrained delegation".) A context is made anew for each login; credentials in
users' names are kept for a short time, in memory only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import gssapi
from gssapi import raw

from popproxy.kerberos.acceptor import DelegatedCredentials
from popproxy.kerberos.credential_cache import CredentialCache
from popproxy.kerberos.delegation_failure import (
    NO_SUCH_SERVICE,
    REFUSED_BY_POLICY,
    DelegationFailed,
    no_target,
    no_transition,
    not_allowed,
    number_of,
    own_failed,
    ticket_not_forwardable,
    user_failed,
)
from popproxy.kerberos.evidence import Evidence
from popproxy.kerberos.initiator import Initiator
from popproxy.kerberos.own import Own, OwnCredentials
from popproxy.state.executors import BoundedExecutor

FORWARDED: Final = "kerberos-forwarded"
DELEGATED: Final = "kerberos-delegated"
TRANSITION: Final = "kerberos-transition"
SERVICE: Final = "kerberos-service"

_KERBEROS: Final = gssapi.MechType.kerberos
_TICKET_FLAGS: Final = gssapi.OID.from_int_seq("1.2.840.113554.1.2.2.5.1")
"""GSS_KRB5_GET_TKT_FLAGS_X of MIT's library: the flags of the initiator's ticket, as an int of the machine."""
_FORWARDABLE: Final = 0x40000000


@dataclass(frozen=True, slots=True)
class _Kept:
    """Credentials for one user. `own`: the ticket of ours that made them; `forwardable`: of the ticket behind them."""

    credentials: gssapi.Credentials
    own: Own | None = None
    forwardable: bool | None = None  # None: not known


class Source:
    """Where the credentials of one login come from. Made by `Delegation`."""

    __slots__ = ("_delegation", "_kept", "_key", "_make", "strategy", "user")

    def __init__(self, delegation: Delegation, strategy: str, user: str, make: Callable[[], _Kept]) -> None:
        self._delegation = delegation
        self._make = make
        self._key = (strategy, user)
        self._kept: _Kept | None = None
        self.strategy = strategy
        self.user = user  # a principal

    def context(self, target: str, channel_binding: bytes | None) -> Initiator:
        """A fresh exchange with the service `target` (``pop/host@REALM``; without realm it is in the proxy's)."""
        delegation = self._delegation
        return Initiator(self, delegation.in_realm(target), channel_binding, delegation.executor)

    def refused(self) -> None:
        """The backend has refused the ticket: the next login gets a new one."""
        self._delegation.forget(self._key)

    def acquire(self) -> gssapi.Credentials:
        """The credentials, from the cache if they are there. Blocks. Raises DelegationFailed."""
        self._kept = self._delegation.acquire(self._key, self._make)
        return self._kept.credentials

    def failed(self, error: raw.GSSError, target: str) -> DelegationFailed:
        """What it means that there is no ticket for `target`. Blocks."""
        assert self._kept is not None
        kept, number, strategy = self._kept, number_of(error.min_code), self.strategy
        self._delegation.forget(self._key)
        if number in NO_SUCH_SERVICE:
            return no_target(strategy, target)
        own = self._delegation.principal if kept.own is None else kept.own.principal
        if strategy == SERVICE:
            return own_failed(number, strategy, own)
        if number not in REFUSED_BY_POLICY or strategy == FORWARDED:
            return user_failed(number, strategy, self.user)
        if strategy == DELEGATED:
            failure = not_allowed(strategy, own, target)
            return failure if kept.forwardable else ticket_not_forwardable(strategy, self.user)
        assert kept.own is not None
        if _is_forwardable(kept.credentials, kept.own):
            return not_allowed(strategy, own, target)
        return no_transition(strategy, own, self.user)

    def __repr__(self) -> str:
        return f"Source({self.strategy})"


class Delegation:
    """One for the process. Its methods do not block; the sources they return do, in the pool."""

    def __init__(
        self,
        keytab: Path,
        principal: str,
        *,
        executor: BoundedExecutor,
        fixed: bool = False,
        keep: float = 300.0,
        size: int = 1000,
    ) -> None:
        """`principal` is ours, with its key in `keytab`.

        For S4U2Proxy the KDC wants the principal that the client's ticket was for, if it has several, or the account
        behind all of them (`fixed`, as in Active Directory). `keep` is in seconds, `size` in users.
        """
        self.principal = principal
        self.executor = executor
        self._fixed = fixed
        self._own = OwnCredentials(keytab)
        self._kept: CredentialCache[_Kept] = CredentialCache(keep, size)

    def forwarded(self, user: str, delegated: DelegatedCredentials) -> Source:
        """The ticket-granting ticket that the client has forwarded."""
        return Source(self, FORWARDED, user, lambda: _Kept(delegated.credentials))

    def delegated(self, user: str, evidence: Evidence, forwarded: DelegatedCredentials | None) -> Source:
        """S4U2Proxy with the client's own ticket. `forwarded`: what it has forwarded beside it, if anything."""
        return Source(self, DELEGATED, user, partial(self._by_ticket, user, evidence, forwarded))

    def transition(self, user: str) -> Source:
        """S4U2Self, then S4U2Proxy. Whoever calls this has proof that it is `user` who comes."""
        return Source(self, TRANSITION, user, partial(self._by_name, user))

    def service(self) -> Source:
        """The proxy's own ticket."""
        return Source(self, SERVICE, self.principal, self._by_keytab)

    def in_realm(self, target: str) -> str:
        """`target` with our realm, unless it has one, or we have none."""
        realm = self.principal.partition("@")[2]
        return target if "@" in target or not realm else f"{target}@{realm}"

    def rehearse(self, strategy: str, target: str, own: str) -> None:
        """Would a login at `target` work, as far as the KDC has a say in it? Raises DelegationFailed. Blocks.

        `own` is the principal of ours that clients would show a ticket for. No user is needed: for constrained
        delegation we show a ticket of our own to ourselves, and S4U2Self gets one in the name of the target.
        """
        target = self.in_realm(target)
        if strategy == TRANSITION:
            self._rehearse(DELEGATED, target, own)
            kept = self._by_name(target)
            assert kept.own is not None
            if not _is_forwardable(kept.credentials, kept.own):
                raise no_transition(strategy, self.principal, "users")
        else:
            self._rehearse(strategy, target, own)

    def _rehearse(self, strategy: str, target: str, own: str) -> None:
        source = self.service()
        if strategy == DELEGATED:
            mine = self._own.get(self.principal if self._fixed else own, strategy)
            try:
                token = _first_token(mine.credentials, mine.principal)
            except raw.GSSError as error:
                raise own_failed(number_of(error.min_code), strategy, mine.principal) from None
            source = self.delegated(mine.principal, Evidence(token or b"", mine.principal), None)
        try:
            source.context(target, None).step(None)
        finally:
            self._kept.drop((strategy, source.user))

    def expire(self) -> None:
        """Give back what has been kept long enough."""
        self._kept.expire()

    # ---- in the pool ----

    def acquire(self, key: tuple[str, str], make: Callable[[], _Kept]) -> _Kept:
        """For a source."""
        kept = self._kept.get(key)
        if kept is None:
            kept = make()
            lifetime = float(kept.credentials.lifetime or 0)
            if kept.own is not None:
                lifetime = min(lifetime, kept.own.ends_at - time.monotonic())
            if key[0] not in (SERVICE, FORWARDED):  # what a client forwards is gone with its login
                self._kept.put(key, kept, lifetime)
        return kept

    def forget(self, key: tuple[str, str]) -> None:
        """For a source: what it had is of no use."""
        self._kept.drop(key)
        if key[0] == SERVICE:
            self._own.forget(self.principal)

    def _by_ticket(self, user: str, evidence: Evidence, forwarded: DelegatedCredentials | None) -> _Kept:
        own = self._own.get(self.principal if self._fixed else evidence.target, DELEGATED)
        token = evidence.token
        try:
            if token is not None and forwarded is not None:
                # Accepting it would give us the forwarded ticket. What that may do, the KDC has not agreed to; but it
                # gets us a ticket of the user's for ourselves, which is all that is wanted.
                token = _first_token(forwarded.credentials, own.principal)
            if token is None:
                raise ticket_not_forwardable(DELEGATED, user)
            accepted = raw.accept_sec_context(token, own.credentials, None, None)
            forwardable = _flags(accepted.context) & _FORWARDABLE != 0
        except raw.GSSError as error:
            raise user_failed(number_of(error.min_code), DELEGATED, user) from None
        if accepted.delegated_creds is None:
            raise ticket_not_forwardable(DELEGATED, user)
        return _Kept(gssapi.Credentials(accepted.delegated_creds), own, forwardable)

    def _by_name(self, user: str) -> _Kept:
        own = self._own.get(self.principal, TRANSITION)
        name = gssapi.Name(user, gssapi.NameType.kerberos_principal)
        try:
            return _Kept(own.credentials.impersonate(name), own)
        except raw.GSSError as error:
            raise user_failed(number_of(error.min_code), TRANSITION, user) from None

    def _by_keytab(self) -> _Kept:
        own = self._own.get(self.principal, SERVICE)
        return _Kept(own.credentials, own)


def _first_token(credentials: gssapi.Credentials, target: str) -> bytes | None:
    name = raw.import_name(target.encode(), gssapi.NameType.kerberos_principal)
    return raw.init_sec_context(name, credentials, None, _KERBEROS).token


def _is_forwardable(credentials: gssapi.Credentials, own: Own) -> bool:
    """Is the ticket of S4U2Self forwardable? Nobody says so, so it is shown to ourselves. Asks no KDC."""
    try:
        token = _first_token(credentials, own.principal)
        if token is None:
            return False
        return _flags(raw.accept_sec_context(token, own.credentials, None, None).context) & _FORWARDABLE != 0
    except raw.GSSError:
        return False


def _flags(context: raw.SecurityContext) -> int:
    (octets,) = raw.inquire_sec_context_by_oid(context, _TICKET_FLAGS)
    return int.from_bytes(octets, sys.byteorder)
