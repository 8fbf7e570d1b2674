"""One connection, from accept to the end of its last record: what is counted of it, what operators see and do.

It is an Authorization up to the login, and a Relay afterwards.
"""

from __future__ import annotations

import secrets
import socket

from popproxy.net.channel import Channel
from popproxy.net.relay import Relay
from popproxy.net.tapped import Tap
from popproxy.observe.logs import get_logger
from popproxy.pop3.capabilities import Capabilities
from popproxy.pop3.exchange import Exchange
from popproxy.session.authorization import Authorization
from popproxy.session.caller import Caller
from popproxy.session.context import ListenerContext
from popproxy.session.login import LoggedIn
from popproxy.session.view import SessionView
from popproxy.state.shared import Lease
from popproxy.types import Address, CloseReason, Identity, SessionId

log = get_logger("session")


class Session:
    """One client's connection; in `sessions` until it is over."""

    __slots__ = ("_authorization", "_caller", "_context", "_lease", "_login", "_relay", "_sessions", "_started", "id")

    def __init__(self, context: ListenerContext, sock: socket.socket, peer: Address, sessions: set[Session]) -> None:
        self.id = SessionId(secrets.token_hex(8))
        self._context = context
        self._caller = Caller(context, self.id, peer)
        self._started = context.reactor.loop.time()
        self._login: tuple[Identity, str, Address] | None = None  # who, pool, backend
        self._lease: Lease | None = None  # of an open maildrop
        self._relay: Relay | None = None
        self._sessions = sessions
        sessions.add(self)
        context.relay.metrics.connections[context.listener.name] += 1
        if context.talkative:
            log.debug("connected", session=self.id, listener=context.listener.name, client=str(peer))
        begun = Authorization(context, self._caller, sock, self._started, self)
        self._authorization: Authorization | None = begun
        begun.begin()

    def logged_in(
        self, login: LoggedIn, client: Channel, before: Capabilities, octets: tuple[int, int],
        pipelined: bytes, eof: bool,
    ) -> None:  # fmt: skip
        """The relay owns both channels from here. See Outcome."""
        context, opened, pool = self._context, login.opened, login.pool
        self._authorization, self._lease = None, login.lease
        self._login = login.identity, pool.name, opened.peer
        exchange = Exchange(
            pipelining=pool.pipelines(opened.backend, context.reactor.loop.time()), before=before,
            declared=pool.declared,
        )  # fmt: skip
        label = opened.backend.label
        context.relay.metrics.backend_sessions[label] += 1
        relay = self._relay = Relay(
            context.relay, client, opened.channel, label, exchange, self._caller.trail, self._started, octets,
            lambda reason: self._relay_ended(label, reason),
        )  # fmt: skip
        if pool.config.splice:
            relay.splice()
        if context.tracing.active:
            context.tracing.logged_in(self)
        relay.start(pipelined, eof)

    def _relay_ended(self, backend: str, reason: CloseReason) -> None:
        self._context.relay.metrics.backend_sessions[backend] -= 1
        self.over(reason)

    def over(self, reason: CloseReason) -> None:
        """Its last record is written. See Outcome."""
        context, name = self._context, self._context.listener.name
        self._authorization = None
        self._caller.leave()
        if self._lease is not None:
            self._lease.release()
        if context.talkative:
            log.debug("ended", session=self.id, listener=name, client=str(self.source), reason=str(reason))
        if context.tracing.active:
            context.tracing.ended(self.id, reason)
        metrics = context.relay.metrics
        metrics.sessions_ended[(name, reason)] += 1
        metrics.session_duration.observe(name, context.reactor.loop.time() - self._started)
        self._sessions.discard(self)

    # ---- tracing ----

    @property
    def user(self) -> str:
        """Who has logged in; empty before."""
        return "" if self._login is None else self._login[0].user

    @property
    def source(self) -> Address:
        """Where the client is."""
        return self._caller.source

    def tap(self, tap: Tap) -> None:
        """Have the dialogue after the login go by `tap`."""
        if self._relay is not None:
            self._relay.tap(tap)

    def untap(self) -> None:
        """No longer."""
        if self._relay is not None:
            self._relay.untap()

    # ---- operators ----

    def shut_down(self, reason: CloseReason = CloseReason.SHUTDOWN, why: str = "shutting down") -> None:
        """The process ends, or an operator wants this session to."""
        phase = self._relay or self._authorization
        if phase is not None:
            phase.shut_down(reason, why)

    def view(self) -> SessionView:
        """What an operator sees of it."""
        context, relay = self._context, self._relay
        identity, pool, backend = self._login or (None, "", None)
        phase = relay or self._authorization
        return SessionView(
            id=self.id, listener=context.listener.name, address=str(self.source), tls=self._caller.tls,
            phase="authorization" if relay is None else "update" if relay.updating else "transaction",
            user="" if identity is None else identity.user,
            mechanism="" if identity is None else identity.mechanism.value,
            pool=pool, backend="" if backend is None else str(backend),
            seconds=context.reactor.loop.time() - self._started,
            octets=(0, 0) if phase is None else phase.octets,
        )  # fmt: skip
