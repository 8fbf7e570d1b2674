"""What is made of a KPOP handshake: a ticket for the session, or its end."""

from __future__ import annotations

from popproxy.errors import Unavailable
from popproxy.kerberos.evidence import Evidence, gss_framed
from popproxy.kerberos.refusal import KerberosRefused, Refusal
from popproxy.observe.audit_trail import AuditTrail
from popproxy.observe.logs import get_logger
from popproxy.sasl.credentials import KpopCredential
from popproxy.session.context import ListenerContext
from popproxy.session.login import LoginAttempt
from popproxy.session.tickets import used_elsewhere
from popproxy.types import Address, CloseReason
from popproxy.wire.kpop import ApReqReceived, Event, Failed, KpopFailure, KpopHandshake

_ENDS = {
    KpopFailure.EOF: CloseReason.CLIENT_LOST,
    KpopFailure.SILENT: CloseReason.LOGIN_TIMEOUT,
    KpopFailure.TIMEOUT: CloseReason.LOGIN_TIMEOUT,
}

log = get_logger("session")


async def judge(
    context: ListenerContext, trail: AuditTrail, client: Address, handshake: KpopHandshake, event: Event
) -> KpopCredential | CloseReason:
    """The ticket, or why there is no session; `client` is where it is.

    What the client is to be told is in the handshake's `data_to_send`.
    """
    if isinstance(event, ApReqReceived):
        return await _verify(context, trail, client, handshake, event.token)
    log.info("KPOP handshake failed", listener=context.listener.name, client=str(client), why=str(event.reason))
    return await _failed(context, trail, client, handshake, event)


async def _verify(
    context: ListenerContext, trail: AuditTrail, client: Address, handshake: KpopHandshake, token: bytes
) -> KpopCredential | CloseReason:
    tickets = context.tickets
    assert tickets is not None
    try:
        accepted = await tickets.verifier.check(token)
        used = await used_elsewhere(context.state, tickets, token, bound=False)
        if used is not None:
            raise await tickets.verifier.refused(used, temporary=used is Refusal.UNAVAILABLE)
    except (KerberosRefused, Unavailable) as error:
        await LoginAttempt(context, trail, client.host, KpopCredential("", "")).ticket_refused(error)
        ours = isinstance(error, Unavailable) or error.temporary
        _count(context, "unavailable" if ours else "refused")
        if isinstance(error, KerberosRefused) and error.token is not None:
            handshake.refuse(error.token)
        return CloseReason.TOO_MANY_FAILURES
    handshake.accept(accepted.mutual_reply)
    _count(context, "none")
    evidence = Evidence(gss_framed(token), accepted.server) if tickets.delegation else None
    return KpopCredential(accepted.client, accepted.server, evidence=evidence)


async def _failed(
    context: ListenerContext, trail: AuditTrail, client: Address, handshake: KpopHandshake, failed: Failed
) -> CloseReason:
    assert context.tickets is not None
    _count(context, failed.reason)
    if failed.reason not in _ENDS:  # not one who only went away
        LoginAttempt(context, trail, client.host, KpopCredential("", "")).exchange_broken()
    if failed.owes_error:
        try:
            await context.tickets.verifier.check(b"")  # refused like any garbage, for the sake of the answer
        except KerberosRefused as error:
            if error.token is not None:
                handshake.refuse(error.token)
        except Unavailable:
            pass
    return _ENDS.get(failed.reason, CloseReason.PROTOCOL)


def _count(context: ListenerContext, reason: str) -> None:
    context.relay.metrics.kpop_handshakes[(context.listener.name, reason)] += 1
