"""SASL GSSAPI in a session: the step that takes a client's token, and the security layer behind the login."""

from __future__ import annotations

from typing import cast

from popproxy.errors import Unavailable
from popproxy.kerberos.refusal import KerberosRefused, Refusal
from popproxy.net.channel import Channel
from popproxy.net.gss_layer import GssLayer
from popproxy.observe.audit_trail import AuditTrail
from popproxy.sasl.credentials import Credential, GssapiCredential, Layer
from popproxy.sasl.gssapi import GssContext
from popproxy.session.answers import LoginFailed
from popproxy.session.context import ListenerContext
from popproxy.session.login import LoginAttempt
from popproxy.session.tickets import used_elsewhere


async def take_step(
    context: ListenerContext, trail: AuditTrail, host: str, channel: Channel, token: bytes
) -> tuple[GssContext, bytes | None] | LoginFailed:
    """Give a token of the client at `host` to a new context. Returns that and its answer for the client.

    Kerberos is done after one token, so that each begins a context of its own.
    """
    tickets, tls = context.tickets, context.tls
    assert tickets is not None
    binding = tls.end_point(channel.tls_context) if tickets.bind and tls is not None else None
    gss = tickets.acceptor.new_context(binding)
    try:
        answer = await gss.advance(token)
        used = await used_elsewhere(context.state, tickets, token, bound=gss.channel_bound)
        if used is not None:
            raise KerberosRefused(used, temporary=used is Refusal.UNAVAILABLE)
        return gss, answer
    except (KerberosRefused, Unavailable) as error:
        return await LoginAttempt(context, trail, host, GssapiCredential("", "")).ticket_refused(error)


def start_layer(context: ListenerContext, channel: Channel, credential: Credential | None, pipelined: bytes) -> bytes:
    """From the +OK on everything is in the security layer that the client has chosen, if it has chosen one.

    Returns what it has sent behind its login in plain text. Raises RemoteProtocolError if that is not in the layer.
    """
    tickets = context.tickets
    if not isinstance(credential, GssapiCredential) or credential.layer is Layer.NONE:
        return pipelined
    assert tickets is not None
    gss = cast("GssContext", credential.context)
    confidential = credential.layer is Layer.CONFIDENTIALITY
    return channel.start_gss(
        GssLayer(gss, credential.client_max_size, tickets.layers.max_size, confidential), pipelined
    )
