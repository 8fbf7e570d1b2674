"""SCRAM asks in the middle of an exchange what is stored for a user; the answer never tells whether there is one."""

from __future__ import annotations

from popproxy.auth.names import NameRefused
from popproxy.errors import Unavailable
from popproxy.observe.audit_trail import AuditTrail
from popproxy.sasl.credentials import ScramCredential
from popproxy.sasl.scram_verifier import ScramVerifier
from popproxy.session.context import ListenerContext
from popproxy.session.login import LoginAttempt, LoginFailed
from popproxy.types import Mechanism


async def find_verifier(
    context: ListenerContext, trail: AuditTrail, host: str, mechanism: Mechanism, authcid: str
) -> ScramVerifier | LoginFailed:
    """The verifier of the user that the client calls `authcid`, or a made-up one; a failure if we cannot tell now.

    `host` is where the client is.
    """
    verifiers = context.verifiers
    assert verifiers is not None
    try:
        try:
            user = context.vet_name(authcid)
        except NameRefused:
            return verifiers.made_up(mechanism, authcid)
        if context.policy is not None and context.policy.forbids(mechanism, user, host):
            return verifiers.made_up(mechanism, user)  # or the exchange would tell whether the password is right
        return await verifiers.find(mechanism, user)
    except Unavailable as error:
        return LoginAttempt(context, trail, host, ScramCredential(mechanism, authcid)).cannot_judge(str(error))
