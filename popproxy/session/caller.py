"""Who the client is and how it has come: by its socket, and by what trusted fronts say (a PROXY header, XCLIENT).

Limits, penalties and records speak of the client; the front is only named in the records.
"""

from __future__ import annotations

from popproxy.session.admission import Refusal
from popproxy.session.context import ListenerContext
from popproxy.types import Address, SessionId
from popproxy.wire.proxy_protocol import ProxyHeader
from popproxy.wire.visitor import HOPS, Visitor
from popproxy.wire.xclient import Introduction


class Caller:
    """The client of one session, counted by Admission between `enter` and `leave`.

    `source` is where it is. That and `trail`, its records, are others once a front has said for whom it has come.
    `tls` is the version, once it is up.
    """

    __slots__ = ("_context", "_destination", "_entered", "_hops", "session", "source", "tls", "trail")

    def __init__(self, context: ListenerContext, session: SessionId, peer: Address) -> None:
        self._context = context
        self.session = session
        self.source = peer
        self.trail = context.relay.audit.trail(session, context.listener.name, peer, None)
        self.tls = ""
        self._destination: Address | None = None  # where the client has come to, if a load balancer has said so
        self._hops = HOPS
        self._entered: str | None = None  # the host that is counted

    def announced(self, header: ProxyHeader) -> None:
        """A load balancer has sent this; one that speaks for itself stays the client."""
        if not header.local and header.source is not None:
            balancer, context = self.source, self._context
            self.source, self._destination = header.source, header.destination
            self.trail = context.relay.audit.trail(self.session, context.listener.name, header.source, balancer)

    def introduced(self, client: Introduction) -> Refusal | None:
        """A front has sent this by XCLIENT. Admission has its say about the client; None if that may come in."""
        context, front, before = self._context, self.source, self.trail
        self.source, self._hops = client.source, client.hops
        self.trail = context.relay.audit.trail(self.session, context.listener.name, client.source, front)
        self.trail.take_over(before, client.session)
        self.leave()
        return self._enter(client.source.host)

    def enter(self) -> Refusal | None:
        """Count the connection, or say why it may not come in."""
        host = self.source.host
        return self._enter("" if self._context.trusts(host) else host)

    def _enter(self, host: str) -> Refusal | None:
        context = self._context
        refusal = context.admission.enter(host)
        if refusal is None:
            self._entered = host
        else:
            context.relay.metrics.connections_refused[(context.listener.name, refusal)] += 1
        return refusal

    def leave(self) -> None:
        """The connection has ended. Not an error if it was never counted."""
        host, self._entered = self._entered, None
        if host is not None:
            self._context.admission.leave(host)

    def visitor(self, ours: Address | None) -> Visitor:
        """For servers that want to know; `ours` is our end of the connection, while there is one."""
        return Visitor(self.source, self._destination or ours or self.source, self.session, self._hops)
