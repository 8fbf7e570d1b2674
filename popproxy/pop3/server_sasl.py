"""AUTH as a server hears it (RFC 5034): an initial response or none, continuation lines, and what asks for more."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode

from popproxy.errors import LocalProtocolError
from popproxy.pop3.server_events import CredentialOffered, ExchangeBroken, GssStepNeeded, VerifierNeeded
from popproxy.sasl.gssapi import GssapiExchange, GssContext
from popproxy.sasl.mechanism import Challenge, NeedStep, NeedVerifier, SaslError, SaslMechanism, Step
from popproxy.sasl.scram import ScramExchange
from popproxy.sasl.scram_verifier import ScramVerifier

Next = bytes | CredentialOffered | GssStepNeeded | VerifierNeeded
"""A line for the client, or an event that the exchange waits for."""


class Auth:
    """One AUTH command, from its first line to the verdict on its credential.

    `refusal` is what the mechanism says before -ERR if that is refused, None if it says nothing.
    """

    __slots__ = ("_mechanism", "refusal")

    def __init__(self, mechanism: SaslMechanism) -> None:
        self._mechanism: SaslMechanism | None = mechanism  # until it has come to its credential
        self.refusal: bytes | None = None

    def start(self, initial: bytes) -> Next:
        """Take what stands behind the mechanism's name, if anything does. Raises SaslError."""
        return self._step(None if not initial else b"" if initial == b"=" else _decoded(initial))

    def response(self, line: bytes) -> Next:
        """Take a continuation line. Raises SaslError."""
        return self._step(_decoded(line))

    def step_done(self, context: GssContext, answer: bytes | None) -> Next:
        """The step that `GssStepNeeded` asked for gave `answer`. Raises SaslError."""
        if not isinstance(self._mechanism, GssapiExchange):
            raise LocalProtocolError("no step of GSSAPI was asked for")
        return self._next(self._mechanism.step_done(context, answer))

    def verifier_found(self, verifier: ScramVerifier) -> Next:
        """What `VerifierNeeded` asked for."""
        if not isinstance(self._mechanism, ScramExchange):
            raise LocalProtocolError("no verifier was asked for")
        return self._next(self._mechanism.verifier_found(verifier))

    def broken(self) -> ExchangeBroken | None:
        """The client has broken its rules. What is to be told of that, if anything is."""
        return ExchangeBroken(self._mechanism.initiator) if isinstance(self._mechanism, GssapiExchange) else None

    def _step(self, response: bytes | None) -> Next:
        assert self._mechanism is not None
        return self._next(self._mechanism.step(response))

    def _next(self, step: Step) -> Next:
        match step:
            case Challenge(data):
                return challenge(data)
            case NeedStep(token):
                return GssStepNeeded(token)
            case NeedVerifier(mechanism, authcid):
                return VerifierNeeded(mechanism, authcid)
            case _:
                self._mechanism, self.refusal = None, step.refusal
                return CredentialOffered(step.credential)


def challenge(data: bytes) -> bytes:
    """The line that carries it."""
    return b"+ " + b64encode(data) + b"\r\n"


def _decoded(text: bytes) -> bytes:
    """Base64, strictly. Raises SaslError."""
    try:
        return b64decode(text.strip(b" "), validate=True)
    except (binascii.Error, ValueError):
        raise SaslError("this is not base64") from None
