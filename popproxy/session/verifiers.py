"""SCRAM asks in the middle of an exchange what is stored for a user; the answer never tells whether there is one."""

from __future__ import annotations

from popproxy.auth.names import NameRefused
from popproxy.auth.throttle import Guess
from popproxy.errors import Unavailable
from popproxy.observe.audit_trail import AuditTrail
from popproxy.sasl.credentials import ScramCredential
from popproxy.sasl.scram_verifier import ScramVerifier
from popproxy.session.answers import LoginFailed
from popproxy.session.context import ListenerContext
from popproxy.session.login import LoginAttempt
from popproxy.types import Mechanism


async def find_verifier(
    context: ListenerContext, trail: AuditTrail, host: str, mechanism: Mechanism, authcid: str
) -> tuple[ScramVerifier, Guess | None] | LoginFailed:
    """The verifier of the user that the client calls `authcid`, or a made-up one; a failure if we cannot tell now.

    With it the guess that begins: who is slowed down hears so here, for with the verifier the exchange goes on to tell
    whether the password is right. None for a name that cannot be. `host` is where the client is.
    """
    verifiers = context.verifiers
    assert verifiers is not None
    attempt = LoginAttempt(context, trail, host, ScramCredential(mechanism, authcid))
    guess: Guess | None = None
    try:
        try:
            user = context.vet_name(authcid)
        except NameRefused:
            return verifiers.made_up(mechanism, authcid), None
        begun = await attempt.begin_exchange(user)
        if isinstance(begun, LoginFailed):
            return begun
        guess = begun
        if context.policy is not None and context.policy.forbids(mechanism, user, host):
            return verifiers.made_up(mechanism, user), guess  # or the exchange would tell whether the password is right
        return await verifiers.find(mechanism, user), guess
    except BaseException as error:
        if guess is not None:
            guess.close()
        if isinstance(error, Unavailable):
            return attempt.cannot_judge(str(error))
        raise
