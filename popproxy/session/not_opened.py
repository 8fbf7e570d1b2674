"""A backend that does not open the maildrop: what that means for the client, for the records, and for operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from popproxy.backend.access_tokens import NoAccessToken
from popproxy.backend.link import NotOpened
from popproxy.errors import BackendError
from popproxy.kerberos.delegation_failure import DelegationFailed
from popproxy.observe.logs import get_logger
from popproxy.observe.metrics import Metrics
from popproxy.session.answers import IN_USE, TOO_SOON, TRY_LATER, LoginFailed
from popproxy.types import AuthFailure, Identity, Outcome

REFUSES: Final = "your mail server refuses"
_BY_CODE: Final = {
    "IN-USE": (IN_USE, AuthFailure.IN_USE),
    "LOGIN-DELAY": (TOO_SOON, AuthFailure.LOGIN_DELAY),
    "SYS/TEMP": (TRY_LATER, AuthFailure.BACKEND_UNAVAILABLE),
    "SYS/PERM": (LoginFailed(REFUSES, "SYS/PERM"), AuthFailure.BACKEND_REFUSED_PROXY),
}

log = get_logger("login")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a login comes to nothing at a backend.

    `passed`: the user is who he says, and the records are to say that first. The rest of what they say is `stage`,
    `why`, `where` (a backend or a pool) and `strategy`; then how the attempt ended, `outcome` for the cause `reason`.
    """

    answer: LoginFailed
    outcome: Outcome
    reason: AuthFailure
    stage: str
    why: str
    where: str
    strategy: str = ""
    passed: bool = False


def login_refused(metrics: Metrics, identity: Identity, error: NotOpened) -> Trouble | None:
    """The backend's verdict on the login. None if it means that the user's credential is wrong."""
    label, strategy = error.backend.label, error.login.strategy
    known = _known(error.code)
    if known is not None:
        answer, reason = known
        return Trouble(answer, Outcome.FAILURE, reason, "login", reason, label)
    if not identity.proven:
        return None
    # the user has proved who it is: what the backend dislikes is ours to mend
    own = strategy != "forward"
    what = "the proxy's credential" if own else "a password that is right here"
    log.error(f"the backend refuses {what}", backend=label, user=identity.user, strategy=strategy)
    metrics.backend_errors[(label, "login", "rejected")] += 1
    if own:
        metrics.backend_credentials_refused[strategy] += 1
    answer = LoginFailed(f"{REFUSES} {'the proxy' if own else 'your password'}, tell your administrator", "SYS/PERM")
    why = "proxy_credential" if own else "rejected"
    return Trouble(
        answer, Outcome.FAILURE, AuthFailure.BACKEND_REFUSED_PROXY, "login", why, label, strategy, passed=True
    )


def unavailable(identity: Identity, pool: str, error: BackendError) -> Trouble:
    """No backend of the pool could be asked, or it broke off."""
    answer = TRY_LATER if error.code == "SYS/TEMP" else LoginFailed(REFUSES, error.code)
    return Trouble(
        answer, Outcome.UNKNOWN, AuthFailure.BACKEND_UNAVAILABLE, error.stage, error.reason, pool,
        passed=identity.proven,
    )  # fmt: skip


def nothing_to_show(
    metrics: Metrics, identity: Identity, pool: str, error: DelegationFailed | NoAccessToken
) -> Trouble:
    """The user has proved who it is, and there is no Kerberos ticket or access token for the backend."""
    if isinstance(error, DelegationFailed):
        what, obstacle, reason = "ticket", str(error.obstacle), AuthFailure.NO_TICKET
    else:
        what, obstacle, reason = "access token", f"token_{error.outcome}", AuthFailure.NO_TOKEN
        if not error.temporary:
            metrics.backend_credentials_refused[error.strategy] += 1
    log.error(
        f"no {what} for the mail server", pool=pool, user=identity.user, strategy=error.strategy, reason=obstacle,
        why=str(error),
    )  # fmt: skip
    answer, outcome = TRY_LATER, Outcome.UNKNOWN
    if error.temporary:
        reason = AuthFailure.UNAVAILABLE
    else:
        answer = LoginFailed("no way to log in at your mail server, tell your administrator", "SYS/PERM")
        outcome = Outcome.FAILURE
    return Trouble(answer, outcome, reason, "login", obstacle, pool, error.strategy, passed=True)


def _known(code: str | None) -> tuple[LoginFailed, AuthFailure] | None:
    """What a backend's code means for the client. Codes are hierarchies (RFC 2449 section 8)."""
    return next((meant for known, meant in _BY_CODE.items() if f"{code}/".startswith(f"{known}/")), None)
