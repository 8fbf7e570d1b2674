"""A client may try more than once to log in: what one try leaves for the next, and when it has had enough of them."""

from __future__ import annotations

from dataclasses import replace

from popproxy.auth.throttle import Guess
from popproxy.net.channel import Channel
from popproxy.pop3.server import ServerConnection
from popproxy.pop3.server_events import GssStepNeeded, VerifierNeeded
from popproxy.sasl.credentials import Credential, GssapiCredential, KpopCredential, ScramCredential
from popproxy.session.answers import LoginFailed
from popproxy.session.caller import Caller
from popproxy.session.context import ListenerContext
from popproxy.session.gssapi import take_step
from popproxy.session.login import LoginAttempt
from popproxy.session.verifiers import find_verifier
from popproxy.session.visit import with_visit
from popproxy.types import CloseReason
from popproxy.wire.visitor import Visitor


class Tries:
    """All that one client tries. `ticket` is what it has shown in KPOP's handshake; USER and PASS come later."""

    __slots__ = ("_caller", "_channel", "_context", "_core", "_failures", "_guess", "_ticket")

    def __init__(
        self, context: ListenerContext, caller: Caller, channel: Channel, core: ServerConnection,
        ticket: KpopCredential | None,
    ) -> None:  # fmt: skip
        self._context = context
        self._caller = caller
        self._channel = channel
        self._core = core
        self._ticket = ticket
        self._guess: Guess | None = None  # begun with a SCRAM exchange, and for the attempt that it ends in
        self._failures = 0

    def completed(self, credential: Credential) -> Credential:
        """With what is known besides of whoever has sent it."""
        if self._ticket is not None:
            return replace(self._ticket, authzid=credential.authcid)
        if self._context.visits:
            return with_visit(credential, self._caller.source, self._channel, self._failures + 1)
        return credential

    def attempt(self, credential: Credential) -> LoginAttempt:
        """To judge a completed credential; with the guess of a SCRAM exchange that has ended in it."""
        guess, self._guess = self._guess, None
        if guess is not None and not isinstance(credential, ScramCredential):  # its exchange was given up
            guess.close()
            guess = None
        caller = self._caller
        return LoginAttempt(self._context, caller.trail, caller.source.host, credential, guess, self._visitor)

    async def step(self, asked: GssStepNeeded | VerifierNeeded) -> LoginFailed | None:
        """Give the core what an exchange asks for; None if that was possible."""
        caller, core = self._caller, self._core
        if isinstance(asked, GssStepNeeded):
            step = await take_step(self._context, caller.trail, caller.source.host, self._channel, asked.token)
            if isinstance(step, LoginFailed):
                return step
            core.sasl_step_done(*step)
            return None
        self.close()
        found = await find_verifier(self._context, caller.trail, caller.source.host, asked.mechanism, asked.authcid)
        if isinstance(found, LoginFailed):
            return found
        verifier, self._guess = found
        core.verifier_found(verifier)
        return None

    def exchange_broken(self, principal: str) -> None:
        """The client has broken the rules of SASL GSSAPI, as far as we know being that one."""
        credential, caller = GssapiCredential(principal, ""), self._caller
        LoginAttempt(self._context, caller.trail, caller.source.host, credential).exchange_broken()

    def failed(self, failure: LoginFailed) -> CloseReason | None:
        """Count it. Why there may be no other try after it, None if there may."""
        self._failures += failure.counts
        if failure.final is None and self._failures >= self._context.config.authentication.tries:
            return CloseReason.TOO_MANY_FAILURES
        return failure.final

    def close(self) -> None:
        """Nothing comes any more of an exchange under way."""
        guess, self._guess = self._guess, None
        if guess is not None:
            guess.close()

    def _visitor(self) -> Visitor:
        return self._caller.visitor(self._channel.local_address)
