"""TLS in a session: the handshake, counted, and what the records say of it and of a certificate shown in it."""

from __future__ import annotations

import asyncio

from popproxy.errors import ChannelClosed, TlsFailed
from popproxy.net.channel import Channel
from popproxy.observe.audit_trail import AuditTrail
from popproxy.observe.logs import get_logger
from popproxy.session.caller import Caller
from popproxy.session.context import ListenerContext

log = get_logger("session")


async def shake_hands(context: ListenerContext, channel: Channel, caller: Caller, already: bytes) -> bool:
    """Start TLS with the client; `already` is what has been read of it. False if nothing came of it."""
    assert context.tls is not None
    name, handshakes = context.listener.name, context.relay.metrics.tls_handshakes
    try:
        info = await channel.accept_tls(context.tls.choose, already)
    except (TlsFailed, ChannelClosed) as error:
        handshakes[(name, "failure", "none")] += 1
        log.info("TLS handshake failed", session=caller.session, client=str(caller.source), why=str(error))
        return False
    except asyncio.CancelledError:
        handshakes[(name, "failure", "none")] += 1
        raise
    handshakes[(name, "success", info.version)] += 1
    caller.trail.tls(info)
    caller.tls = info.version
    if context.listener.client_ca is not None:
        _record_certificate(caller.trail, channel.peer_certificate)
    return True


def _record_certificate(trail: AuditTrail, certificate: bytes | None) -> None:
    """Name it in every record of the session from here on; `certificate` is DER, None if there is none."""
    if certificate is None:
        return
    from cryptography import x509  # noqa: PLC0415 - large, and few clients show one
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

    try:
        parsed = x509.load_der_x509_certificate(certificate)
        subject = parsed.subject.rfc4514_string()
    except ValueError:  # of TLS's own parser it was good enough
        return
    trail.client_certificate(subject, parsed.fingerprint(SHA256()).hex())
