"""One login attempt, from a complete credential to an open maildrop or an honest refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from popproxy.auth.names import NameRefused
from popproxy.auth.proof import Prover
from popproxy.auth.result import Accepted, AuthResult, CannotTell, Declined, Rejected
from popproxy.auth.throttle import Guess, Throttled
from popproxy.backend.access_tokens import NoAccessToken
from popproxy.backend.link import NotOpened, Opened
from popproxy.backend.pool import Pool
from popproxy.backend.strategies import logins_for
from popproxy.directories.entry import Refused
from popproxy.errors import AuditError, BackendError, Unavailable, VaultError
from popproxy.kerberos.delegation_failure import DelegationFailed
from popproxy.kerberos.refusal import KerberosRefused
from popproxy.observe.audit_trail import AuditTrail
from popproxy.observe.logs import get_logger
from popproxy.routing.router import Misplaced
from popproxy.sasl.credentials import (
    CertificateCredential,
    Credential,
    GssapiCredential,
    KpopCredential,
    TokenCredential,
    repeatable,
)
from popproxy.session.answers import (
    NO_SERVER,
    NO_WAY_IN,
    NOT_RECORDED,
    THROTTLED,
    TOO_MANY_SESSIONS,
    TOO_SOON,
    TRY_LATER,
    WRONG,
    LoginFailed,
)
from popproxy.session.context import ListenerContext
from popproxy.session.limits import give_turn_back, take_session, take_turn
from popproxy.session.not_opened import Trouble, login_refused, nothing_to_show, unavailable
from popproxy.session.place import with_place
from popproxy.session.tickets import REASONS, forget_evidence
from popproxy.state.orders import Orders
from popproxy.state.shared import Lease
from popproxy.types import AuthFailure, Identity, Outcome
from popproxy.wire.visitor import Visitor

log = get_logger("login")


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The maildrop is open and the record of it is written. `lease` must be released when the session ends."""

    identity: Identity
    pool: Pool
    opened: Opened
    lease: Lease


_FORGED = frozenset((AuthFailure.CONTROL_CHARACTER, AuthFailure.KERBEROS_REPLAY, AuthFailure.KERBEROS_GARBAGE))
"""What comes from no person and no mail client. What our own keytab or clock may be the cause of is not here."""


class LoginAttempt:
    """One credential's way through vetting, authentication, routing and the backend.

    `guess` is what was begun when its exchange was, if that has a say of its own in whether a password is right.
    """

    __slots__ = ("_context", "_credential", "_guess", "_host", "_lease", "_started", "_trail", "_turn_of", "_visitor")

    def __init__(
        self, context: ListenerContext, trail: AuditTrail, host: str, credential: Credential,
        guess: Guess | None = None, visitor: Callable[[], Visitor] | None = None,
    ) -> None:  # fmt: skip
        self._context = context
        self._trail = trail
        self._host = host  # the client's
        self._credential = credential
        self._guess = guess
        self._visitor = visitor  # for servers that want to know
        self._lease: Lease | None = None
        self._turn_of = ""  # the user whose next login will be too soon
        self._started = context.reactor.loop.time()

    async def run(self) -> LoggedIn | LoginFailed:
        """Judge the credential. Raises nothing but cancellation (and bugs)."""
        outcome = None
        try:
            outcome = await self._judge()
            return outcome
        finally:
            if self._guess is not None:
                self._guess.close()
            if not isinstance(outcome, LoggedIn):
                self._give_back()

    async def _judge(self) -> LoggedIn | LoginFailed:
        context = self._context
        prover = context.provers.get(type(self._credential))
        if prover is not None:
            return await self._prove(prover)
        try:
            user = context.vet(self._credential)
        except NameRefused as refused:
            return await self._wrong(refused.reason)
        credential = self._credential
        if isinstance(credential, GssapiCredential | KpopCredential):  # the ticket has proved it
            return await self._open(
                Identity(user, credential.authcid, credential.mechanism, principal=credential.principal)
            )
        throttled = await self._begin_guess(user)
        if throttled is not None:
            return throttled
        if self._forbidden(user):
            return await self._not_looked_at()
        return await self._judged(await context.authenticator.authenticate(self._credential, user))

    async def _prove(self, prover: Prover) -> LoggedIn | LoginFailed:
        """The credential says itself whose it is. Certificates nobody can guess; tokens count against who is named."""
        credential = self._credential
        if isinstance(credential, TokenCredential) and credential.authzid:
            try:
                throttled = await self._begin_guess(self._context.vet_name(credential.authzid))
            except NameRefused as refused:
                return await self._wrong(refused.reason)
            if throttled is not None:
                return throttled
        return await self._judged(await prover.prove(credential))

    async def _begin_guess(self, user: str) -> LoginFailed | None:
        if self._guess is not None:
            if self._guess.user == user:
                return None
            self._guess.close()
        self._guess = self._context.throttle.guess(user, self._host)
        against = await self._guess.refused()
        return None if against is None else await self._throttled(against)

    async def _judged(self, result: AuthResult) -> LoggedIn | LoginFailed:
        match result:
            case CannotTell(detail, reason):
                return self.cannot_judge(detail, reason)
            case Rejected(reason):
                return await self._wrong(reason)
            case Declined():
                return await self._wrong(AuthFailure.BAD_CREDENTIALS)
            case Accepted(identity):
                credential = self._credential
                if isinstance(credential, CertificateCredential | TokenCredential) and not credential.authzid:
                    self._credential = replace(credential, authzid=identity.user)  # for the records
                return await self._open(identity)

    async def begin_exchange(self, user: str) -> Guess | LoginFailed:
        """An exchange for the canonical `user` is about to begin that tells the client itself if it knows the password.

        So it is now that it may be refused; the guess is for the attempt that the exchange ends in, or to be closed.
        """
        throttled = await self._begin_guess(user)
        guess, self._guess = self._guess, None
        assert guess is not None
        return guess if throttled is None else throttled

    async def ticket_refused(self, error: KerberosRefused | Unavailable) -> LoginFailed:
        """A ticket was not accepted: there is nobody to judge."""
        if isinstance(error, KerberosRefused) and not error.temporary:
            return await self._wrong(REASONS[error.reason])
        return self.cannot_judge(str(error))

    def cannot_judge(self, why: str, reason: AuthFailure = AuthFailure.UNAVAILABLE) -> LoginFailed:
        """Something of ours is out of order."""
        log.error("cannot authenticate", why=why)
        return self._failed(TRY_LATER, Outcome.UNKNOWN, reason)

    def exchange_broken(self) -> None:
        """The client has broken the rules of an exchange: it has been told, this is the record."""
        self._failed(WRONG, Outcome.FAILURE, AuthFailure.MALFORMED)

    def _forbidden(self, user: str) -> bool:
        """Has the policy given up the mechanism for this user?"""
        policy = self._context.policy
        return policy is not None and policy.forbids(self._credential.mechanism, user, self._host)

    async def _not_looked_at(self) -> LoginFailed:
        """Refused whether the password is right or not; so it counts against nobody, as old telephones go on asking."""
        assert self._guess is not None
        self._guess.close()
        self._guess = None
        return await self._wrong(AuthFailure.MECHANISM_ENDED)

    async def _open(self, identity: Identity) -> LoggedIn | LoginFailed:
        context = self._context
        if self._forbidden(identity.user):  # whose certificate, token or entry in a directory says so only now
            return await self._wrong(AuthFailure.MECHANISM_ENDED)
        refused = await self._account_refused(identity)
        if refused is not None:
            return refused
        orders = context.holding.book.orders
        if orders.holds:
            if not await context.holding.passed(identity.user):
                return self._held(identity)
            orders = context.holding.book.orders
        if context.places is not None:
            try:
                placed = await with_place(context.places, identity, orders.since(identity.user))
            except Unavailable as error:
                log.error("cannot tell where the mail is", why=str(error))
                return self._failed(TRY_LATER, Outcome.UNKNOWN, AuthFailure.UNAVAILABLE)
            if isinstance(placed, Refused) and placed.reason is AuthFailure.AMBIGUOUS:  # no fault of the user's
                return self._failed(TRY_LATER, Outcome.UNKNOWN, AuthFailure.AMBIGUOUS)
            if isinstance(placed, Refused):
                return await self._wrong(placed.reason)
            identity = placed
        try:
            route = context.router.find(identity.user, identity.location, orders.moves.get(identity.user))
        except Misplaced as error:
            log.error(str(error), user=identity.user, cure=error.cure)
            return self._failed(NO_SERVER, Outcome.FAILURE, AuthFailure.NO_ROUTE)
        if route is None:
            if not identity.proven:  # who that is, only a backend could tell: do not tell whether there is one
                return await self._wrong(AuthFailure.NO_ROUTE)
            log.error("no rule leads this user to a pool", user=identity.user)
            return self._failed(NO_SERVER, Outcome.FAILURE, AuthFailure.NO_ROUTE)
        pool = context.pools[route.pool]
        try:
            logins = logins_for(
                pool, route.backend_user, identity, self._credential, lambda: context.stored(identity.user),
                context.kerberos_logins,
            )  # fmt: skip
        except VaultError as error:
            log.error("the vault cannot be used", why=str(error))
            return self._failed(TRY_LATER, Outcome.UNKNOWN, AuthFailure.UNAVAILABLE)
        if not logins:
            log.error("no way to log in at the pool", user=identity.user, pool=pool.name)
            return self._failed(NO_WAY_IN, Outcome.FAILURE, AuthFailure.NO_ROUTE)
        # A lease for somebody who has proved nothing would let strangers use up the user's: he gets it afterwards.
        if identity.proven and (limit := await self._limited(identity.user)) is not None:
            return limit
        try:
            visitor = self._visitor() if pool.introduces and self._visitor is not None else None
            opened = await context.dialer.open_maildrop(pool, logins, route.backend_user, route.server, visitor)
        except (DelegationFailed, NoAccessToken) as error:
            return self._troubled(nothing_to_show(context.relay.metrics, identity, pool.name, error))
        except BackendError as error:
            return self._troubled(unavailable(identity, pool.name, error))
        if isinstance(opened, NotOpened):
            trouble = login_refused(context.relay.metrics, identity, opened)
            return await self._wrong(AuthFailure.BAD_CREDENTIALS) if trouble is None else self._troubled(trouble)
        return await self._opened(identity, route.backend_user, pool, opened, orders)

    async def _account_refused(self, identity: Identity) -> LoginFailed | None:
        """The users file disables the account, whatever the user has shown; None if it does not."""
        accounts = self._context.accounts
        if accounts is None or not identity.proven:
            return None
        try:
            disabled = await accounts.disabled(identity.user)
        except Unavailable as error:
            log.error("cannot tell whether an account is disabled", why=str(error))
            return self._failed(TRY_LATER, Outcome.UNKNOWN, AuthFailure.UNAVAILABLE)
        return await self._wrong(AuthFailure.DISABLED) if disabled else None

    async def _opened(
        self, identity: Identity, mailbox: str, pool: Pool, opened: Opened, orders: Orders
    ) -> LoggedIn | LoginFailed:
        """The record first, then +OK: a login that is not on record does not happen. `orders` have led here."""
        context = self._context
        try:
            if self._lease is None and (limit := await self._limited(identity.user)) is not None:
                opened.channel.abort()
                return limit
            if context.holding.book.orders.overtake(orders, identity.user):  # a moment ago
                opened.channel.abort()
                return self._held(replace(identity, proven=True))
            assert self._lease is not None
            self._success()
            ends = None
            if context.policy is not None:
                ends = context.policy.ends(identity.mechanism, identity.user, self._host)
            protection = opened.channel.protection if pool.config.tunnel is None else "SSH"
            self._trail.login(identity, mailbox, pool.name, opened.peer, opened.login.strategy, ends, protection)
            await context.relay.audit.commit()
        except AuditError:
            opened.channel.abort()
            return self._failed(NOT_RECORDED, Outcome.UNKNOWN, AuthFailure.AUDIT, recorded=True)
        except BaseException:
            opened.channel.abort()
            raise
        self._count(Outcome.SUCCESS, AuthFailure.NONE)
        if context.places is not None and not identity.proven:
            context.places.confirm(identity.user)
        if context.kerberos_logins is not None:
            forget_evidence(self._credential)
        return LoggedIn(identity, pool, opened, self._lease)

    def _troubled(self, trouble: Trouble) -> LoginFailed:
        """The backend does not open the maildrop."""
        if trouble.passed:
            self._success()
        self._trail.backend_failure(trouble.stage, trouble.why, trouble.where, trouble.strategy)
        return self._failed(trouble.answer, trouble.outcome, trouble.reason, recorded=trouble.passed)

    async def _limited(self, user: str) -> LoginFailed | None:
        """A lease for the session, and its turn. What is said if the user has too many, or has just had one."""
        context = self._context
        limits = context.config.limits
        near = context.throttle.place(self._host).near
        self._lease = await take_session(context.state, limits, user, near)
        if self._lease is None:
            return self._over_the_limit(TOO_MANY_SESSIONS, AuthFailure.SESSION_LIMIT)
        if not await take_turn(context.state, limits, user):
            return self._over_the_limit(TOO_SOON, AuthFailure.LOGIN_DELAY)
        self._turn_of = user
        return None

    def _give_back(self) -> None:
        if self._lease is not None:
            self._lease.release()
        if self._turn_of:
            give_turn_back(self._context.state, self._context.config.limits, self._turn_of)

    def _over_the_limit(self, sorry: LoginFailed, reason: AuthFailure) -> LoginFailed:
        """The user is who he says."""
        credential = self._credential
        self._right()
        self._trail.auth(Outcome.FAILURE, reason, credential.mechanism, credential.authcid, known=True)
        return self._failed(sorry, Outcome.FAILURE, reason, recorded=True)

    def _held(self, identity: Identity) -> LoginFailed:
        """He hears no more than that it is not his fault, and what he has shown counts as right if it was."""
        if identity.proven:
            self._right()
        return self._failed(TRY_LATER, Outcome.UNKNOWN, AuthFailure.HELD)

    async def _throttled(self, against: Throttled) -> LoginFailed:
        """Too many were wrong before, or have not been judged in time: nobody looks at this one."""
        context = self._context
        if against.behind is not None:
            return self._failed(TRY_LATER, Outcome.UNKNOWN, AuthFailure.UNAVAILABLE)
        context.relay.metrics.auth_throttled[against.scope] += 1
        failed = self._failed(THROTTLED, Outcome.FAILURE, AuthFailure.THROTTLED)
        penalties = context.config.penalties
        tarpit = penalties.answer == "tarpit"
        await self._until(self._started + (penalties.tarpit if tarpit else context.config.authentication.failure_delay))
        return failed

    async def _wrong(self, reason: AuthFailure) -> LoginFailed:
        """Refuse, at the same time after the attempt whatever the cause."""
        failed = self._failed(WRONG, Outcome.FAILURE, reason)
        credential = self._credential
        if self._guess is not None:
            await self._guess.wrong(repeatable(credential))
            self._guess.close()
        elif reason in _FORGED:
            self._context.throttle.misbehaved(self._host)
        await self._until(self._context.delay.answer_at(self._started, self._context.reactor.loop.time()))
        return failed

    async def _until(self, when: float) -> None:
        await asyncio.sleep(when - self._context.reactor.loop.time())

    def _failed(
        self, failed: LoginFailed, outcome: Outcome, reason: AuthFailure, *, recorded: bool = False
    ) -> LoginFailed:
        if not recorded:
            credential = self._credential
            known = isinstance(credential, GssapiCredential | KpopCredential) and bool(credential.principal)
            self._trail.auth(outcome, reason, credential.mechanism, credential.authcid, known=known)
        self._count(outcome, reason)
        return failed

    def _right(self) -> None:
        if self._guess is not None:
            self._guess.right()
            self._guess.close()

    def _success(self) -> None:
        self._right()
        credential = self._credential
        self._trail.auth(Outcome.SUCCESS, AuthFailure.NONE, credential.mechanism, credential.authcid, known=True)

    def _count(self, outcome: Outcome, reason: AuthFailure) -> None:
        label = "error" if outcome is Outcome.UNKNOWN else str(outcome)
        metrics = self._context.relay.metrics
        metrics.auth_attempts[(self._credential.mechanism, label, reason)] += 1
