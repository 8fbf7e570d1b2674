"""AUTH as a client says it (RFC 5034): the command with or without an initial response, and continuation lines."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from dataclasses import dataclass

from popproxy.errors import BackendError, LocalProtocolError
from popproxy.sasl.client import ClientStep, NeedToken, SaslClient
from popproxy.sasl.gssapi import GssSecurity
from popproxy.sasl.gssapi_client import GssapiClient, NoCommonLayer, Protection
from popproxy.sasl.mechanism import SaslError

INITIAL_LIMIT = 255
"""Longest AUTH command in octets, CRLF included, that may carry an initial response (RFC 5034 section 4)."""


@dataclass(frozen=True, slots=True)
class Line:
    """Send `octets`. `credential`: they prove something, so from here on nothing is retried elsewhere."""

    octets: bytes
    credential: bool


class Auth:
    """One AUTH command, from its first line to the server's verdict. Every method may raise BackendError.

    `two_lines`: the initial response waits for the server's go-ahead, however short it is.
    """

    def __init__(self, mechanism: SaslClient, *, two_lines: bool = False) -> None:
        self._mechanism = mechanism
        self._two_lines = two_lines
        self.begun = False  # AUTH has been sent
        self._response: bytes | None = None  # which it could not carry

    def start(self) -> Line | NeedToken:
        """The AUTH command, unless a token is needed for it."""
        return self._next(self._mechanism.start())

    def challenged(self, challenge: bytes) -> Line | NeedToken:
        """Take a challenge, decoded."""
        response, self._response = self._response, None
        if response is None:
            try:
                return self._next(self._mechanism.challenge(challenge))
            except SaslError as error:
                raise BackendError(str(error), "login", "protocol") from None
            except NoCommonLayer as error:
                raise BackendError(str(error), "login", "layer", "SYS/PERM") from None
        if challenge:
            raise BackendError("a challenge where the initial response belongs", "login", "protocol")
        return Line(_encoded(response), credential=True)

    def token_made(self, context: GssSecurity, token: bytes | None) -> Line | NeedToken:
        """The GSS context has made the token that was asked for."""
        if not isinstance(self._mechanism, GssapiClient):
            raise LocalProtocolError("no token was asked for")
        try:
            return self._next(self._mechanism.token_made(context, token))
        except SaslError as error:
            raise BackendError(str(error), "login", "protocol") from None

    def succeed(self) -> Protection | None:
        """The server says +OK. If it does so too early it has not proved itself: it could be any."""
        if not self._mechanism.done or self._response is not None:
            raise BackendError("the server says +OK in the middle of AUTH", "login", "protocol")
        return self._mechanism.protection if isinstance(self._mechanism, GssapiClient) else None

    def _next(self, step: ClientStep) -> Line | NeedToken:
        if isinstance(step, NeedToken):
            return step
        if self.begun:
            return Line(_encoded(step.data), credential=True)
        self.begun = True
        name = self._mechanism.name.encode()
        line = b"AUTH " + name + b" " + (b64encode(step.data) or b"=") + b"\r\n"
        if len(line) <= INITIAL_LIMIT and not self._two_lines:
            return Line(line, credential=True)
        self._response = step.data
        return Line(b"AUTH " + name + b"\r\n", credential=False)


def challenge_in(line: bytes) -> bytes | None:
    """The challenge in a line of the server, decoded; None if it is a status line. Raises BackendError."""
    if line[:1] != b"+" or line[1:3].upper() == b"OK":
        return None
    try:
        return b64decode(line[1:].strip(b" \t"), validate=True)
    except binascii.Error:
        raise BackendError("a challenge that is no base64", "login", "protocol") from None


def _encoded(response: bytes) -> bytes:
    return b64encode(response) + b"\r\n"
