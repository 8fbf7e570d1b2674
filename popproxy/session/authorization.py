"""AUTHORIZATION (RFC 1939 section 4) of one connection: all that comes before its login, and the login.

`run` is the whole story. It ends with an open maildrop, which the session takes over, or with the connection.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from popproxy.errors import LocalProtocolError, RemoteProtocolError
from popproxy.net.channel import Channel
from popproxy.observe.logs import get_logger
from popproxy.pop3 import replies
from popproxy.pop3.capabilities import Capabilities
from popproxy.pop3.server import ServerConnection
from popproxy.pop3.server_events import (
    CredentialOffered,
    ExchangeBroken,
    Finished,
    FrontSpoke,
    GssStepNeeded,
    TlsRequested,
    VerifierNeeded,
)
from popproxy.sasl.credentials import Credential, KpopCredential
from popproxy.session.answers import LoginFailed
from popproxy.session.caller import Caller
from popproxy.session.context import ListenerContext
from popproxy.session.dialogue import Dialogue
from popproxy.session.gssapi import start_layer
from popproxy.session.kpop import judge
from popproxy.session.login import LoggedIn
from popproxy.session.tls import shake_hands
from popproxy.session.tries import Tries
from popproxy.types import CloseReason
from popproxy.wire.xclient import parse_xclient

log = get_logger("session")


class SessionOver(Exception):
    """The session ends before its login."""

    def __init__(self, reason: CloseReason) -> None:
        super().__init__(reason)
        self.reason = reason


class Outcome(Protocol):
    """Hears what has come of it: one of the two, once."""

    def logged_in(
        self, login: LoggedIn, client: Channel, before: Capabilities, octets: tuple[int, int],
        pipelined: bytes, eof: bool,
    ) -> None:  # fmt: skip
        """The client has its +OK. Its channel and the backend's are the outcome's from here on.

        `before`: the capabilities that the client has been told. `octets`: from it, and to it, so far. `pipelined`:
        what it has sent behind its login; `eof`: it will send no more than that.
        """
        ...

    def over(self, reason: CloseReason) -> None:
        """The connection has ended, and its record is written."""
        ...


class Authorization:
    """A connection that has not logged in: decides what happens next in its dialogue."""

    __slots__ = (
        "_begun", "_caller", "_context", "_dialogue", "_outcome", "_over", "_started", "_task", "deadline",
    )  # fmt: skip

    def __init__(
        self, context: ListenerContext, caller: Caller, sock: socket.socket, started: float, outcome: Outcome
    ) -> None:
        self._context = context
        self._caller = caller
        self._outcome = outcome
        self._started = started
        self.deadline = started + context.config.timeouts.login
        self._dialogue = Dialogue(context, caller, sock, self)
        self._over: CloseReason | None = None  # why the task is being cancelled
        self._task: asyncio.Task[None] | None = None  # while there is something to wait for
        self._begun = False  # it has had its first turn; before that it cannot be cancelled without losing the story
        context.relay.metrics.sessions[(context.listener.name, "authorization")] += 1
        context.relay.deadlines.add(self)

    def begin(self) -> None:
        """The client is there. The outcome may be told before this returns."""
        context = self._context
        if context.greets_first and not context.sent_by_balancer(self._caller.source.host):
            try:
                self._admit()
                self._greet()
            except SessionOver as over:
                self._end(over.reason)
            except Exception:
                self._broken()
        else:
            self._task = context.reactor.loop.create_task(self.run())

    # ---- the story ----

    async def run(self) -> None:
        """Admission, PROXY header, TLS, greeting, login, hand-over.

        Where nothing comes before the greeting the client has it already, and this begins with its first credential: a
        task costs more than the whole dialogue up to there.
        """
        context = self._context
        self._begun = True
        ticket = None
        try:
            if self._over is not None:
                raise SessionOver(self._over)
            if self._dialogue.core is None:
                await self._identify_peer()
                self._admit()
                if context.listener.tls == "implicit":
                    await self._start_tls()
                if context.listener.protocol == "kpop":
                    ticket = await self._take_ticket()
                self._greet()
            self._hand_over(*await self._authorize(ticket))
        except SessionOver as over:
            self._end(over.reason)
        except asyncio.CancelledError:
            self._end(self._over or CloseReason.SHUTDOWN)
        except Exception:
            self._broken()

    def _broken(self) -> None:
        """An exception that nobody expects is being handled."""
        log.exception("session failed", session=self._caller.session)
        self._dialogue.say(replies.err("internal error", "SYS/TEMP"))
        self._end(CloseReason.INTERNAL)

    async def _identify_peer(self) -> None:
        """Who is it? From a trusted load balancer the PROXY header tells; from others one is garbage like any other."""
        context, caller = self._context, self._caller
        if not context.sent_by_balancer(caller.source.host):
            return
        self.deadline = self._started + context.config.timeouts.handshake
        caller.announced(await self._dialogue.read_header())
        self.deadline = self._started + context.config.timeouts.login

    def _admit(self) -> None:
        context = self._context
        if self._caller.enter() is not None:
            if context.listener.tls != "implicit":
                self._dialogue.say(replies.err("too many connections, try again later", "SYS/TEMP"))
            raise SessionOver(CloseReason.REFUSED)
        context.admission.waiting[self] = None

    async def _start_tls(self) -> None:
        context, dialogue, before = self._context, self._dialogue, self.deadline
        self.deadline = min(before, context.reactor.loop.time() + context.config.timeouts.handshake)
        if not await shake_hands(context, dialogue.channel, self._caller, dialogue.take_rest()):
            raise SessionOver(CloseReason.TLS)
        self.deadline = before

    async def _take_ticket(self) -> KpopCredential:
        """KPOP's handshake. Whoever does not end it has no session."""
        context, caller, dialogue = self._context, self._caller, self._dialogue
        before = self.deadline
        self.deadline = min(before, context.reactor.loop.time() + context.config.timeouts.handshake)
        handshake, event = await dialogue.hear_ticket()
        self.deadline = float("inf")
        verdict = await judge(context, caller.trail, caller.source, handshake, event)
        dialogue.say(handshake.data_to_send())
        if isinstance(verdict, CloseReason):
            raise SessionOver(verdict)
        self.deadline = before
        return verdict

    def _greet(self) -> None:
        context, dialogue = self._context, self._dialogue
        offer = context.offer(self._caller.source, dialogue.channel, context.timestamp())
        dialogue.greet(ServerConnection(offer, context.config.limits.bad_commands))

    async def _authorize(self, ticket: KpopCredential | None) -> tuple[Credential, LoggedIn]:
        caller, dialogue = self._caller, self._dialogue
        core = dialogue.core
        assert core is not None
        tries = Tries(self._context, caller, dialogue.channel, core, ticket)
        try:
            while True:
                while not dialogue.events:
                    await dialogue.wait()
                match dialogue.events.pop(0):
                    case Finished(reason):
                        raise SessionOver(reason)
                    case TlsRequested():
                        await self._start_tls()
                        offer = self._context.offer(caller.source, dialogue.channel, core.offer.timestamp)
                        try:
                            core.upgrade_to_tls(offer)
                        except LocalProtocolError:  # plain text that came in the moment before TLS
                            raise SessionOver(CloseReason.PROTOCOL) from None
                    case FrontSpoke(arguments):
                        self._meet(arguments)
                    case GssStepNeeded() | VerifierNeeded() as asked:
                        before = self._suspend_deadline()
                        failure = await tries.step(asked)
                        self._restore_deadline(before)
                        if failure is not None:
                            self._refuse(failure, tries)
                        else:
                            dialogue.go_on()
                    case ExchangeBroken(principal):
                        tries.exchange_broken(principal)
                    case CredentialOffered(offered):
                        before = self._suspend_deadline()
                        credential = tries.completed(offered)
                        outcome = await tries.attempt(credential).run()
                        self._restore_deadline(before)
                        if isinstance(outcome, LoggedIn):
                            return credential, outcome
                        tracing = self._context.tracing
                        if tracing.active:
                            tracing.refused(
                                caller.session, caller.source, credential, self._context.vet, outcome.answer
                            )
                        self._refuse(outcome, tries)
        finally:
            tries.close()

    def _meet(self, arguments: bytes) -> None:
        """A front has come for somebody else, who is the client from here on: to limits, penalties, records."""
        caller, dialogue = self._caller, self._dialogue
        core = dialogue.core
        assert core is not None
        front = caller.source
        try:
            client = parse_xclient(arguments)
        except RemoteProtocolError as error:
            log.warning("XCLIENT refused", session=caller.session, front=str(front), why=str(error))
            core.not_introduced(str(error), None, CloseReason.XCLIENT)
        else:
            if caller.introduced(client) is None:
                core.introduced(self._context.offer(caller.source, dialogue.channel, core.offer.timestamp, front))
            else:
                core.not_introduced("too many connections, try again later", "SYS/TEMP", CloseReason.REFUSED)
        dialogue.go_on()

    def _refuse(self, failure: LoginFailed, tries: Tries) -> None:
        core = self._dialogue.core
        assert core is not None
        self._context.relay.metrics.response_codes[failure.code or "other"] += 1
        core.login_failed(failure.text, failure.code, tries.failed(failure))
        self._dialogue.go_on()

    def _hand_over(self, credential: Credential, login: LoggedIn) -> None:
        """AUTHORIZATION is over."""
        dialogue = self._dialogue
        core, channel = dialogue.core, dialogue.channel
        assert core is not None
        try:
            core.login_accepted()
            dialogue.go_on()
            if channel.closed:
                raise SessionOver(CloseReason.CLIENT_LOST)
            pipelined, eof = core.take_rest()
            try:
                pipelined = start_layer(self._context, channel, credential, pipelined)
            except RemoteProtocolError:
                channel.abort()
                raise SessionOver(CloseReason.PROTOCOL) from None
            self._outcome.logged_in(login, channel, core.offer.capabilities(), self.octets, pipelined, eof)
        except BaseException:
            login.opened.channel.abort()
            login.lease.release()
            raise
        self._leave()

    # ---- its time ----

    def deadline_passed(self) -> None:
        """The login, or a step towards it, has taken too long."""
        self.deadline = float("inf")
        reason = self._dialogue.deadline_passed()
        if reason is not None:
            self.cancel(reason)

    def _suspend_deadline(self) -> float:
        """Every step of an attempt has a deadline of its own."""
        before, self.deadline = self.deadline, float("inf")
        return before

    def _restore_deadline(self, before: float) -> None:
        last = self._started + self._context.config.timeouts.login
        # who was judged for longer than he had left hears of it, and has a second more; once
        self.deadline = before if before > last else max(before, self._context.relay.deadlines.now + 1)

    def check_pace(self) -> None:
        """See Timed. The time for the login is for all of it."""

    def failed(self) -> None:
        """See Timed."""
        self._dialogue.channel.failed()

    # ---- small change ----

    @property
    def octets(self) -> tuple[int, int]:
        """From the client, and to it, so far."""
        return self._dialogue.octets

    def shut_down(self, reason: CloseReason, why: str) -> None:
        """The process ends, or an operator wants this connection to."""
        if self._dialogue.core is not None:
            self._dialogue.say(replies.err(f"{why}, try again later", "SYS/TEMP"))
        self.cancel(reason)

    @property
    def busy(self) -> bool:
        """See Waiting."""
        return self.deadline == float("inf")  # a step that has a deadline of its own

    def make_room(self) -> None:
        """See Waiting."""
        self._context.relay.metrics.connections_refused[(self._context.listener.name, "evicted")] += 1
        if self._dialogue.core is not None:
            self._dialogue.say(replies.err("too many connections, try again later", "SYS/TEMP"))
        self._dialogue.channel.close()
        self.cancel(CloseReason.REFUSED)

    def awake(self) -> None:
        """The first event has come, if there is nobody who would take it anyway. See Follower."""
        if self._task is None and self._over is None:
            self._task = self._context.reactor.loop.create_task(self.run())

    def cancel(self, reason: CloseReason) -> None:
        """Before its time, and for the first reason that was given. See Follower."""
        if self._over is None:
            self._over = reason
            if self._task is None and self._dialogue.core is not None:
                self._end(reason)
            elif self._task is not None and self._begun:
                self._task.cancel()

    def _end(self, reason: CloseReason) -> None:
        """The session ends before its login."""
        self._dialogue.channel.close(linger=reason is not CloseReason.QUIT_BEFORE_LOGIN)
        bytes_in, bytes_out = self.octets
        self._caller.trail.end(
            reason, retr=0, top=0, dele=0, bytes_in=bytes_in, bytes_out=bytes_out,
            duration=self._context.reactor.loop.time() - self._started, committed=False, abandoned=(),
        )  # fmt: skip
        self._leave()
        self._outcome.over(reason)

    def _leave(self) -> None:
        context = self._context
        context.relay.deadlines.discard(self)
        context.admission.waiting.pop(self, None)
        context.relay.metrics.sessions[(context.listener.name, "authorization")] -= 1
        self._task = None
        self._dialogue.end()
