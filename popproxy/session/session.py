"""The life of one connection, from accept to the end of its last record.

`run` is the whole story up to the login; then the relay takes over, and the task ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from dataclasses import replace

from popproxy.auth.throttle import Guess
from popproxy.errors import ChannelClosed, LocalProtocolError, RemoteProtocolError, TlsFailed
from popproxy.net.channel import Channel
from popproxy.net.relay import Relay
from popproxy.net.tapped import Tap
from popproxy.observe.logs import get_logger
from popproxy.pop3 import replies
from popproxy.pop3.exchange import Exchange
from popproxy.pop3.server import (
    CredentialOffered,
    Event,
    ExchangeBroken,
    Finished,
    FrontSpoke,
    GssStepNeeded,
    ServerConnection,
    TlsRequested,
    VerifierNeeded,
)
from popproxy.sasl.credentials import Credential, GssapiCredential, KpopCredential, ScramCredential
from popproxy.session.client_certificate import record_certificate
from popproxy.session.context import ListenerContext
from popproxy.session.gssapi import start_layer, take_step
from popproxy.session.kpop import judge
from popproxy.session.login import LoggedIn, LoginAttempt, LoginFailed
from popproxy.session.verifiers import find_verifier
from popproxy.session.view import SessionView
from popproxy.session.visit import with_visit
from popproxy.state.shared import Lease
from popproxy.types import Address, CloseReason, Identity, Mechanism, SessionId
from popproxy.wire.kpop import KpopHandshake
from popproxy.wire.proxy_protocol import ProxyHeaderParser
from popproxy.wire.visitor import HOPS, Visitor
from popproxy.wire.xclient import parse_xclient

UNREAD_LIMIT = 64 * 1024
"""Octets of answers before the login that a client may leave unread; one octet of a command can ask for thirty."""

log = get_logger("session")


class SessionOver(Exception):
    """The session ends before its login."""

    def __init__(self, reason: CloseReason) -> None:
        super().__init__(reason)
        self.reason = reason


class Session:
    """One client's connection. Its channel's receiver until the relay takes over."""

    __slots__ = (
        "_admitted", "_begun", "_bytes_in", "_bytes_out", "_channel", "_context", "_core", "_credential",
        "_destination", "_events", "_failures", "_front", "_guess", "_header", "_hops", "_kpop", "_lease", "_login",
        "_over", "_relay", "_sessions", "_source", "_started", "_task", "_ticket", "_tls", "_trail", "_waiter",
        "deadline", "id",
    )  # fmt: skip

    def __init__(self, context: ListenerContext, sock: socket.socket, peer: Address, sessions: set[Session]) -> None:
        loop = context.reactor.loop
        self.id = SessionId(secrets.token_hex(8))
        self._context = context
        self._source = peer
        self._destination: Address | None = None  # where the client has come to, if a load balancer has said so
        self._front: Address | None = None  # who has come for it, if that is somebody else
        self._hops = HOPS
        self._started = loop.time()
        self.deadline = self._started + context.config.timeouts.login
        self._channel = Channel(context.reactor, sock, self)
        self._core: ServerConnection | None = None
        self._header: ProxyHeaderParser | None = None
        self._kpop: KpopHandshake | None = None
        self._ticket: KpopCredential | None = None  # shown in KPOP's handshake; USER and PASS come later
        self._credential: Credential | None = None  # the one that was accepted
        self._trail = context.relay.audit.trail(self.id, context.listener.name, peer, None)
        self._relay: Relay | None = None
        self._login: tuple[Identity, str, Address] | None = None  # who, pool, backend
        self._tls = ""  # the version, once it is up
        self._events: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None
        self._over: CloseReason | None = None  # why the task is being cancelled
        self._admitted: str | None = None
        self._lease: Lease | None = None  # of an open maildrop
        self._guess: Guess | None = None  # begun with a SCRAM exchange
        self._failures = 0
        self._bytes_in = self._bytes_out = 0
        self._sessions = sessions
        sessions.add(self)
        metrics = context.relay.metrics
        metrics.connections[context.listener.name] += 1
        metrics.sessions[(context.listener.name, "authorization")] += 1
        context.relay.deadlines.add(self)
        if context.talkative:
            log.debug("connected", session=self.id, listener=context.listener.name, client=str(peer))
        self._task: asyncio.Task[None] | None = None  # while there is something to wait for
        self._begun = False  # it has had its first turn; before that it cannot be cancelled without losing the story
        if context.greets_first and not context.sent_by_balancer(peer.host):
            try:
                self._admit()
                self._greet()
            except SessionOver as over:
                self._end(over.reason)
            except Exception:
                self._broken()
        else:
            self._task = loop.create_task(self.run())

    # ---- the story ----

    async def run(self) -> None:
        """Admission, PROXY header, TLS, greeting, login, hand-over.

        Where nothing comes before the greeting the client has it already, and this begins with its first credential: a
        task costs more than the whole dialogue up to there.
        """
        context = self._context
        self._begun = True
        try:
            if self._over is not None:
                raise SessionOver(self._over)
            if self._core is None:
                await self._identify_peer()
                self._admit()
                if context.listener.tls == "implicit":
                    await self._start_tls(b"")
                if context.listener.protocol == "kpop":
                    await self._take_ticket()
                self._greet()
            self._hand_over(await self._authorize())
        except SessionOver as over:
            self._end(over.reason)
        except asyncio.CancelledError:
            self._end(self._over or CloseReason.SHUTDOWN)
        except Exception:
            self._broken()

    def _broken(self) -> None:
        """An exception that nobody expects is being handled."""
        log.exception("session failed", session=self.id)
        self._say(replies.err("internal error", "SYS/TEMP"))
        self._end(CloseReason.INTERNAL)

    async def _identify_peer(self) -> None:
        """Who is it? From a trusted load balancer the PROXY header tells; from others one is garbage like any other."""
        context = self._context
        if not context.sent_by_balancer(self._source.host):
            return
        self._header = ProxyHeaderParser()
        self.deadline = self._started + context.config.timeouts.handshake
        while self._header.result is None:
            await self._wait()
        header, balancer = self._header.result, self._source
        if not header.local and header.source is not None:
            self._source, self._destination = header.source, header.destination
            self._trail = context.relay.audit.trail(self.id, context.listener.name, self._source, balancer)
        self.deadline = self._started + context.config.timeouts.login

    def _admit(self) -> None:
        context = self._context
        host = "" if context.trusts(self._source.host) else self._source.host
        refusal = context.admission.enter(host)
        if refusal is not None:
            context.relay.metrics.connections_refused[(context.listener.name, refusal)] += 1
            if context.listener.tls != "implicit":
                self._say(replies.err("too many connections, try again later", "SYS/TEMP"))
            raise SessionOver(CloseReason.REFUSED)
        self._admitted = host
        context.admission.waiting[self] = None

    async def _start_tls(self, already: bytes) -> None:
        context = self._context
        assert context.tls is not None
        name, metrics = context.listener.name, context.relay.metrics
        before = self.deadline
        self.deadline = min(before, context.reactor.loop.time() + context.config.timeouts.handshake)
        header, self._header = self._header, None
        if header is not None:
            already = header.rest
        try:
            info = await self._channel.accept_tls(context.tls.choose, already)
        except (TlsFailed, ChannelClosed) as error:
            metrics.tls_handshakes[(name, "failure", "none")] += 1
            log.info("TLS handshake failed", session=self.id, client=str(self._source), why=str(error))
            raise SessionOver(CloseReason.TLS) from None
        except asyncio.CancelledError:
            metrics.tls_handshakes[(name, "failure", "none")] += 1
            raise
        metrics.tls_handshakes[(name, "success", info.version)] += 1
        self._trail.tls(info)
        self._tls = info.version
        if context.listener.client_ca is not None:
            record_certificate(self._trail, self._channel.peer_certificate)
        self.deadline = before

    def _greet(self) -> None:
        context = self._context
        timestamp = context.timestamp()
        offer = context.offer(self._source, self._channel, timestamp)
        header, self._header = self._header, None
        kpop, self._kpop = self._kpop, None
        core = self._core = ServerConnection(offer, context.config.limits.bad_commands)
        core.greet(context.listener.banner)
        if header is not None and header.rest:
            core.receive_data(header.rest)
        if kpop is not None:
            core.receive_data(kpop.rest)
            if kpop.eof:
                core.receive_eof()
        self._channel.resume()
        self._after_core()

    async def _authorize(self) -> LoggedIn:
        core = self._core
        assert core is not None
        while True:
            while not self._events:
                await self._wait()
            match self._events.pop(0):
                case Finished(reason):
                    raise SessionOver(reason)
                case TlsRequested():
                    await self._start_tls(b"")
                    timestamp = core.offer.timestamp
                    try:
                        core.upgrade_to_tls(self._context.offer(self._source, self._channel, timestamp))
                    except LocalProtocolError:  # plain text that came in the moment before TLS
                        raise SessionOver(CloseReason.PROTOCOL) from None
                case FrontSpoke(arguments):
                    self._meet(arguments)
                case GssStepNeeded(token):
                    before = self._suspend_deadline()
                    refused = await self._gss_step(token)
                    self._restore_deadline(before)
                    if refused is not None:
                        self._refuse(refused)
                case VerifierNeeded(mechanism, authcid):
                    before = self._suspend_deadline()
                    refused = await self._find_verifier(mechanism, authcid)
                    self._restore_deadline(before)
                    if refused is not None:
                        self._refuse(refused)
                case ExchangeBroken(principal):
                    LoginAttempt(
                        self._context, self._trail, self._source.host, GssapiCredential(principal, "")
                    ).exchange_broken()
                case CredentialOffered(credential):
                    before = self._suspend_deadline()
                    if self._ticket is not None:
                        credential = replace(self._ticket, authzid=credential.authcid)
                    elif self._context.visits:
                        credential = with_visit(credential, self._source, self._channel, self._failures + 1)
                    attempt = LoginAttempt(
                        self._context,
                        self._trail,
                        self._source.host,
                        credential,
                        self._take_guess(credential),
                        self._visitor,
                    )
                    outcome = await attempt.run()
                    self._restore_deadline(before)
                    if isinstance(outcome, LoggedIn):
                        self._credential, self._lease = credential, outcome.lease
                        return outcome
                    if self._context.tracing.active:
                        self._context.tracing.refused(
                            self.id, self._source, credential, self._context.vet, outcome.answer
                        )
                    self._refuse(outcome)

    def _meet(self, arguments: bytes) -> None:
        """A front has come for somebody else, who is the client from here on: to limits, penalties, records."""
        context, core, front = self._context, self._core, self._source
        assert core is not None
        try:
            client = parse_xclient(arguments)
        except RemoteProtocolError as error:
            log.warning("XCLIENT refused", session=self.id, front=str(front), why=str(error))
            core.not_introduced(str(error), None, CloseReason.XCLIENT)
            self._after_core()
            return
        self._front, self._source, self._hops = front, client.source, client.hops
        trail = context.relay.audit.trail(self.id, context.listener.name, client.source, front)
        trail.take_over(self._trail, client.session)
        self._trail = trail
        assert self._admitted is not None
        context.admission.leave(self._admitted)
        self._admitted = None
        refusal = context.admission.enter(client.source.host)
        if refusal is not None:
            context.relay.metrics.connections_refused[(context.listener.name, refusal)] += 1
            core.not_introduced("too many connections, try again later", "SYS/TEMP", CloseReason.REFUSED)
        else:
            self._admitted = client.source.host
            core.introduced(context.offer(client.source, self._channel, core.offer.timestamp, front))
        self._after_core()

    def _visitor(self) -> Visitor:
        destination = self._destination or self._channel.local_address
        return Visitor(self._source, destination or self._source, self.id, self._hops)

    def _suspend_deadline(self) -> float:
        """Every step of an attempt has a deadline of its own."""
        before, self.deadline = self.deadline, float("inf")
        return before

    def _restore_deadline(self, before: float) -> None:
        last = self._started + self._context.config.timeouts.login
        # who was judged for longer than he had left hears of it, and has a second more; once
        self.deadline = before if before > last else max(before, self._context.relay.deadlines.now + 1)

    async def _gss_step(self, token: bytes) -> LoginFailed | None:
        core = self._core
        assert core is not None
        step = await take_step(self._context, self._trail, self._source.host, self._channel, token)
        if isinstance(step, LoginFailed):
            return step
        core.sasl_step_done(*step)
        self._after_core()
        return None

    async def _find_verifier(self, mechanism: Mechanism, authcid: str) -> LoginFailed | None:
        core = self._core
        assert core is not None
        self._take_guess()
        found = await find_verifier(self._context, self._trail, self._source.host, mechanism, authcid)
        if isinstance(found, LoginFailed):
            return found
        verifier, self._guess = found
        core.verifier_found(verifier)
        self._after_core()
        return None

    def _take_guess(self, credential: Credential | None = None) -> Guess | None:
        """For the credential that its exchange has ended in; any other closes it, for the exchange was given up."""
        guess, self._guess = self._guess, None
        if guess is not None and not isinstance(credential, ScramCredential):
            guess.close()
            return None
        return guess

    async def _take_ticket(self) -> None:
        """KPOP's handshake. Whoever does not end it has no session."""
        context, handshake = self._context, KpopHandshake()
        self._kpop = handshake
        before = self.deadline
        self.deadline = min(before, context.reactor.loop.time() + context.config.timeouts.handshake)
        header, self._header = self._header, None
        if header is not None:
            handshake.receive_data(header.rest)
        self._channel.resume()
        while not (events := handshake.events_received()):
            self._say(handshake.data_to_send())
            await self._wait()
        self._say(handshake.data_to_send())
        self.deadline = float("inf")
        verdict = await judge(context, self._trail, self._source, handshake, events[0])
        self._say(handshake.data_to_send())
        if isinstance(verdict, CloseReason):
            raise SessionOver(verdict)
        self._ticket = verdict
        self.deadline = before

    def _refuse(self, failed: LoginFailed) -> None:
        core, metrics = self._core, self._context.relay.metrics
        assert core is not None
        self._failures += failed.counts
        final = CloseReason.TOO_MANY_FAILURES if self._failures >= self._context.config.authentication.tries else None
        metrics.response_codes[failed.code or "other"] += 1
        core.login_failed(failed.text, failed.code, failed.final or final)
        self._after_core()

    def _hand_over(self, login: LoggedIn) -> None:
        """AUTHORIZATION is over: the relay owns both channels from here."""
        context, core = self._context, self._core
        assert core is not None
        opened, pool = login.opened, login.pool
        core.login_accepted()
        self._after_core()
        if self._channel.closed:
            opened.channel.abort()
            raise SessionOver(CloseReason.CLIENT_LOST)
        pipelined, eof = core.take_rest()
        try:
            pipelined = start_layer(context, self._channel, self._credential, pipelined)
        except RemoteProtocolError:
            self._channel.abort()
            opened.channel.abort()
            raise SessionOver(CloseReason.PROTOCOL) from None
        now = context.reactor.loop.time()
        exchange = Exchange(
            pipelining=pool.pipelines(opened.backend, now), before=core.offer.capabilities(), declared=pool.declared
        )
        self._login = login.identity, pool.name, opened.peer
        context.admission.waiting.pop(self, None)
        label, metrics = opened.backend.label, context.relay.metrics
        metrics.backend_sessions[label] += 1
        metrics.sessions[(context.listener.name, "authorization")] -= 1
        context.relay.deadlines.discard(self)
        self._core = self._task = None
        self._relay = Relay(
            context.relay, self._channel, opened.channel, label, exchange, self._trail, self._started,
            (self._bytes_in, self._bytes_out), lambda reason: self._relay_ended(label, reason),
        )  # fmt: skip
        if pool.config.splice:
            self._relay.splice()
        if context.tracing.active:
            context.tracing.logged_in(self)
        self._relay.start(pipelined, eof)

    # ---- receiver ----

    def data_received(self, buffer: bytearray, end: int) -> None:
        """Octets before the login."""
        self._bytes_in += end
        data = memoryview(buffer)[:end]
        if self._core is not None:
            self._core.receive_data(data)
            self._after_core()
        elif self._kpop is not None:
            self._kpop.receive_data(data)
            if self._kpop.backlogged:
                self._channel.pause()
            self._wake()
        elif self._header is not None:
            try:
                self._header.feed(data)
            except RemoteProtocolError as error:
                log.warning("PROXY header refused", session=self.id, client=str(self._source), why=str(error))
                self._cancel(CloseReason.PROXY_HEADER)
                return
            if self._header.result is not None:
                self._channel.pause()  # what follows belongs to TLS or to the greeting
                self._wake()

    def eof_received(self) -> None:
        """The client will send no more, but may still read."""
        if self._core is not None:
            self._core.receive_eof()
            self._after_core()
        elif self._kpop is not None:
            self._kpop.receive_eof()
            self._wake()
        else:
            self._cancel(CloseReason.CLIENT_LOST)

    def drained(self) -> None:
        """All that was said is in the client's socket."""

    def connection_lost(self, reason: str) -> None:
        """The client is gone."""
        self._cancel(CloseReason.INTERNAL if reason == "internal" else CloseReason.CLIENT_LOST)

    def deadline_passed(self) -> None:
        """The login, or a step towards it, has taken too long."""
        self.deadline = float("inf")
        if self._channel.handshaking:
            self._cancel(CloseReason.TLS)
        elif self._kpop is not None:
            with contextlib.suppress(LocalProtocolError):  # its AP-REQ has come in this very moment
                self._kpop.deadline_passed()
            self._wake()
        elif self._core is None:
            self._cancel(CloseReason.PROXY_HEADER)
        else:
            self._say(replies.err("you took too long to log in"))
            self._cancel(CloseReason.LOGIN_TIMEOUT)

    # ---- tracing ----

    @property
    def user(self) -> str:
        """Who has logged in; empty before."""
        return "" if self._login is None else self._login[0].user

    @property
    def source(self) -> Address:
        """Where the client is."""
        return self._source

    def tap(self, tap: Tap) -> None:
        """Have the dialogue after the login go by `tap`."""
        if self._relay is not None:
            self._relay.tap(tap)

    def untap(self) -> None:
        """No longer."""
        if self._relay is not None:
            self._relay.untap()

    def check_pace(self) -> None:
        """See Timed. The time for the login is for all of it."""

    def failed(self) -> None:
        """See Timed."""
        self._channel.failed()

    # ---- small change ----

    def shut_down(self, reason: CloseReason = CloseReason.SHUTDOWN, why: str = "shutting down") -> None:
        """The process ends, or an operator wants this session to."""
        if self._relay is not None:
            self._relay.shut_down(reason, why)
        else:
            if self._core is not None:
                self._say(replies.err(f"{why}, try again later", "SYS/TEMP"))
            self._cancel(reason)

    @property
    def busy(self) -> bool:
        """See Waiting."""
        return self.deadline == float("inf")  # a step that has a deadline of its own

    def make_room(self) -> None:
        """See Waiting."""
        self._context.relay.metrics.connections_refused[(self._context.listener.name, "evicted")] += 1
        if self._core is not None:
            self._say(replies.err("too many connections, try again later", "SYS/TEMP"))
        self._channel.close()
        self._cancel(CloseReason.REFUSED)

    def view(self) -> SessionView:
        """What an operator sees of it."""
        context, relay, login = self._context, self._relay, self._login
        identity, pool, backend = login or (None, "", None)
        return SessionView(
            id=self.id, listener=context.listener.name, address=str(self._source), tls=self._tls,
            phase="authorization" if relay is None else "update" if relay.updating else "transaction",
            user="" if identity is None else identity.user,
            mechanism="" if identity is None else identity.mechanism.value,
            pool=pool, backend="" if backend is None else str(backend),
            seconds=context.reactor.loop.time() - self._started,
            octets=(self._bytes_in, self._bytes_out) if relay is None else relay.octets,
        )  # fmt: skip

    async def _wait(self) -> None:
        self._waiter = self._context.reactor.loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._task is None:
            if self._over is None:
                self._task = self._context.reactor.loop.create_task(self.run())
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _cancel(self, reason: CloseReason) -> None:
        if self._over is None:
            self._over = reason
            if self._task is None and self._core is not None:
                self._end(reason)
            elif self._task is not None and self._begun:
                self._task.cancel()

    def _after_core(self) -> None:
        """Send what the core has to say, and wake the story if something has happened."""
        core = self._core
        assert core is not None
        self._say(core.data_to_send())
        if core.commands:
            commands = self._context.relay.metrics.commands
            for verb, answered in core.commands:
                commands[(verb, "ok" if answered else "err")] += 1
            core.commands.clear()
        events = core.events_received()
        if events:
            self._events += events
            self._wake()
        if core.backlogged:
            self._channel.pause()
        elif not self._channel.reading:
            self._channel.resume()

    def _say(self, data: bytes) -> None:
        if data:
            self._bytes_out += len(data)
            self._context.relay.metrics.bytes_to_client += len(data)
            self._channel.write(data)
            if self._channel.pending > UNREAD_LIMIT:
                self._channel.abort()
                self._cancel(CloseReason.CLIENT_STALL)

    def _end(self, reason: CloseReason) -> None:
        """The session ends before its login."""
        context = self._context
        context.relay.deadlines.discard(self)
        self._channel.close(linger=reason is not CloseReason.QUIT_BEFORE_LOGIN)
        context.relay.metrics.sessions[(context.listener.name, "authorization")] -= 1
        self._trail.end(
            reason, retr=0, top=0, dele=0, bytes_in=self._bytes_in, bytes_out=self._bytes_out,
            duration=context.reactor.loop.time() - self._started, committed=False, abandoned=(),
        )  # fmt: skip
        self._core = self._task = None
        self._account(reason)

    def _relay_ended(self, backend: str, reason: CloseReason) -> None:
        self._context.relay.metrics.backend_sessions[backend] -= 1
        self._account(reason)

    def _account(self, reason: CloseReason) -> None:
        context, name = self._context, self._context.listener.name
        context.admission.waiting.pop(self, None)
        if self._admitted is not None:
            context.admission.leave(self._admitted)
            self._admitted = None
        self._take_guess()
        if self._lease is not None:
            self._lease.release()
        if context.talkative:
            log.debug("ended", session=self.id, listener=name, client=str(self._source), reason=str(reason))
        if context.tracing.active:
            context.tracing.ended(self.id, reason)
        metrics = context.relay.metrics
        metrics.sessions_ended[(name, reason)] += 1
        metrics.session_duration.observe(name, context.reactor.loop.time() - self._started)
        self._sessions.discard(self)
