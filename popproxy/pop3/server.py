"""The client-facing core in AUTHORIZATION: octets in, events and octets out, no input or output of its own.

It speaks the dialogue (RFC 1939 sections 4 and 7, RFC 2449, RFC 2595, RFC 5034) and judges nothing: a complete
credential becomes a `CredentialOffered`, and the core then waits, keeping what the client pipelines, until
`login_accepted` or `login_failed` is called. After `login_accepted` the exchange of TRANSACTION takes over with
`take_rest`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from popproxy.errors import LocalProtocolError
from popproxy.pop3 import capabilities, replies
from popproxy.pop3.commands import COMMAND_LIMIT, BadCommand, Command, keyword_of, parse
from popproxy.pop3.lines import LineSplitter, LineTooLong
from popproxy.pop3.states import IN_AUTHORIZATION, NEXT, State
from popproxy.sasl import apop
from popproxy.sasl.credentials import Credential, PasswordCredential, RpopCredential
from popproxy.sasl.gssapi import GssapiExchange, GssContext
from popproxy.sasl.mechanism import (
    Challenge,
    NeedStep,
    NeedVerifier,
    SaslError,
    SaslMechanism,
    Step,
    decode_name,
)
from popproxy.sasl.scram import ScramExchange
from popproxy.sasl.scram_verifier import ScramVerifier
from popproxy.types import Address, CloseReason, Mechanism, Secret
from popproxy.wire.xclient import GREETING as XCLIENT_GREETING

SASL_LINE_LIMIT = 12 * 1024
"""Longest line inside AUTH, in octets. As a server we take longer initial responses than RFC 5034 section 4 allows."""
GSSAPI_LINE_LIMIT = 4 * 64 * 1024 // 3 + 8 + len("AUTH GSSAPI \r\n")
"""The same where GSSAPI is offered: tickets that carry an Active Directory PAC reach tens of KiB."""
INPUT_LIMIT = 192 * 1024
"""Octets that a client may send before its login, in all."""
BACKLOG_LIMIT = 32 * 1024
"""Octets a client may pipeline behind a login under way before we stop reading."""
_OTHER_PROTOCOLS = (
    b"GET ",
    b"POST ",
    b"PUT ",
    b"HEAD ",
    b"OPTIONS ",
    b"DELETE ",
    b"CONNECT ",
    b"PATCH ",
    b"HELO",
    b"EHLO",
    b"LHLO",
    b"PROXY ",
)
"""Beginnings of other protocols: browsers and mail servers led here, and PROXY headers from peers nobody trusts."""


@dataclass(frozen=True, slots=True)
class CredentialOffered:
    """Somebody to be judged. The core waits for `login_accepted` or `login_failed`."""

    credential: Credential


@dataclass(frozen=True, slots=True)
class GssStepNeeded:
    """A GSS context must take `token`. The core waits for `sasl_step_done` or `login_failed`."""

    token: bytes


@dataclass(frozen=True, slots=True)
class VerifierNeeded:
    """SCRAM needs what is stored for `authcid`. The core waits for `verifier_found` or `login_failed`."""

    mechanism: Mechanism
    authcid: str


@dataclass(frozen=True, slots=True)
class ExchangeBroken:
    """The client has sent what SASL GSSAPI does not allow, and been told.

    `principal` is who it has proved to be, "" before that.
    """

    principal: str


@dataclass(frozen=True, slots=True)
class TlsRequested:
    """STLS was answered +OK and nothing was pipelined behind it: start TLS, then call `upgrade_to_tls`."""


@dataclass(frozen=True, slots=True)
class FrontSpoke:
    """A trusted front says by XCLIENT for whom it has come. The core waits for `introduced` or `not_introduced`."""

    arguments: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """The last reply is in `data_to_send`; send it and close."""

    reason: CloseReason


Event = CredentialOffered | GssStepNeeded | VerifierNeeded | ExchangeBroken | TlsRequested | FrontSpoke | Finished


@dataclass(frozen=True, slots=True)
class Offer:
    """What this connection may do now; it changes once, when TLS starts.

    `passwords`: USER/PASS are taken. `mechanisms`: SASL name → factory. `timestamp`: APOP's, None where APOP is off.
    `rpop`: where the client is, None where RPOP is off or not for this client; it has no capability. `xclient`: the
    peer is a front that may say for whom it has come; the greeting tells it so.
    """

    passwords: bool
    mechanisms: Mapping[str, Callable[[], SaslMechanism]] = field(default_factory=dict)
    timestamp: bytes | None = None
    rpop: Address | None = None
    stls: bool = False
    xclient: bool = False
    backend: capabilities.Capabilities = field(default_factory=dict)
    implementation: str = "popproxy"

    def capabilities(self) -> dict[str, tuple[str, ...]]:
        """The CAPA list of this moment (RFC 2449): nothing that would be refused."""
        found: dict[str, tuple[str, ...]] = dict(self.backend)
        if self.passwords:
            found["USER"] = ()
        if self.mechanisms:
            found["SASL"] = tuple(self.mechanisms)
        if self.stls:
            found["STLS"] = ()
        found |= {"RESP-CODES": (), "AUTH-RESP-CODE": (), "PIPELINING": (), "IMPLEMENTATION": (self.implementation,)}
        return found


class ServerConnection:
    """One client before its login."""

    def __init__(self, offer: Offer, bad_commands: int = 10) -> None:
        self.state = State.AUTHORIZATION
        self.offer = offer
        self.commands: list[tuple[str, bool]] = []  # (verb, answered +OK) for the metrics; the session empties it
        self._lines = LineSplitter(GSSAPI_LINE_LIMIT if "GSSAPI" in offer.mechanisms else SASL_LINE_LIMIT)
        self._out: list[bytes] = []
        self._events: list[Event] = []
        self._capa = b""  # the answer to CAPA, made once: a client may ask thousands of times
        self._user: bytes | None = None  # of a USER that PASS may follow
        self._sasl: SaslMechanism | None = None  # an AUTH under way
        self._refusal: bytes | None = None  # what the mechanism says before -ERR if its credential is refused
        self._farewell: Callable[[], None] | None = None  # -ERR, once the client has answered such a refusal
        self._waiting = False  # for the verdict on a credential, a step of GSSAPI, or TLS
        self._bad_left = bad_commands
        self._eof = False

    # ---- surface ----

    def greet(self, banner: str) -> None:
        """The greeting; an APOP timestamp in it announces APOP (RFC 1939 section 7)."""
        stamp = f" {self.offer.timestamp.decode('ascii')}" if self.offer.timestamp else ""
        if self.offer.xclient:
            banner = f"{XCLIENT_GREETING} {banner}"
        self._out.append(replies.ok(banner + stamp))

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take octets from the client; what comes behind the end of the dialogue is dropped."""
        if self.state is State.CLOSED:
            return
        self._lines.feed(data)
        self._advance()

    def receive_eof(self) -> None:
        """The client will send no more; what it has sent is still answered."""
        self._eof = True
        self._advance()

    def events_received(self) -> list[Event]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events

    def data_to_send(self) -> bytes:
        """Octets for the client since the last call."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    @property
    def backlogged(self) -> bool:
        """True while so much is pipelined behind a login that reading should pause."""
        return self._waiting and len(self._lines) > BACKLOG_LIMIT

    def upgrade_to_tls(self, offer: Offer) -> None:
        """TLS has started: all that was said before is forgotten (RFC 2595 section 4). Raises LocalProtocolError."""
        if len(self._lines):
            raise LocalProtocolError("plain text is buffered behind STLS")
        self.offer = offer
        self._capa = b""
        self._user = self._sasl = self._farewell = None
        self._waiting = False

    def introduced(self, offer: Offer) -> None:
        """The front is believed: from here on it is its client to whom `offer` is made."""
        self.offer = offer
        self._capa = b""
        self._waiting = False
        self._reply("XCLIENT", replies.ok("Updated"))
        self._advance()

    def not_introduced(self, text: str, code: str | None, reason: CloseReason) -> None:
        """The front is not believed. This is the end: what follows would be held against the front itself."""
        self.commands.append(("XCLIENT", False))
        self._waiting = False
        self._out.append(replies.err(text, code))
        self._finish(reason)

    def login_accepted(self, text: str = "Logged in") -> None:
        """The credential is good and the backend is ready."""
        self._move(State.TRANSACTION)
        self._out.append(replies.ok(text))

    def sasl_step_done(self, context: GssContext, answer: bytes | None) -> None:
        """The step that `GssStepNeeded` asked for has been taken, and gave `answer`."""
        if not isinstance(self._sasl, GssapiExchange):
            raise LocalProtocolError("no step of GSSAPI was asked for")
        self._waiting = False
        try:
            self._sasl_took(self._sasl.step_done(context, answer))
        except SaslError as error:
            self._sasl_failed(error)
        self._advance()

    def verifier_found(self, verifier: ScramVerifier) -> None:
        """What `VerifierNeeded` asked for, or a made-up one."""
        if not isinstance(self._sasl, ScramExchange):
            raise LocalProtocolError("no verifier was asked for")
        self._waiting = False
        self._sasl_took(self._sasl.verifier_found(verifier))
        self._advance()

    def login_failed(self, text: str, code: str | None, final: CloseReason | None = None) -> None:
        """The credential is not good, or cannot be judged now. `final`: say so and end the connection."""
        self._waiting = False
        self._sasl = None
        refusal, self._refusal = self._refusal, None

        def say() -> None:
            self._out.append(replies.err(text, code))
            if final is not None:
                self._finish(final)

        if refusal is None or code != "AUTH":
            say()
        else:
            self._refuse_in_words_of_the_mechanism(refusal, say)
        self._advance()

    def take_rest(self) -> tuple[bytes, bool]:
        """What the client has pipelined behind its login, and whether it has closed its side."""
        return self._lines.take_rest(), self._eof

    # ---- dialogue ----

    def _advance(self) -> None:
        while not self._waiting and self.state is State.AUTHORIZATION:
            try:
                line = self._lines.next_line()
            except LineTooLong:
                self._note_broken_exchange()
                self._sasl = self._user = self._farewell = None
                self._bad("line too long")
                self._limit_input()
                continue
            if self._limit_input() or line is None:
                break
            if self._sasl is not None:
                self._sasl_response(line)
            elif self._farewell is not None:
                farewell, self._farewell = self._farewell, None
                farewell()
            else:
                self._command(line)
        if self._eof and not self._waiting and self.state is State.AUTHORIZATION:
            self._finish(CloseReason.CLIENT_LOST)

    def _limit_input(self) -> bool:
        # what the lines have taken, not what was read: so the core stays blind to segmentation
        if self._lines.taken <= INPUT_LIMIT or self.state is not State.AUTHORIZATION:
            return False
        self._refuse_and_finish("too much input before the login", CloseReason.PROTOCOL)
        return True

    def _command(self, line: bytes) -> None:
        if line[:8].upper().startswith(_OTHER_PROTOCOLS):
            self._refuse_and_finish(
                "this is a POP3 server", CloseReason.PROTOCOL
            )  # ALPACA: nothing echoed, no second try
            return
        user, self._user = self._user, None
        try:
            if len(line) + 2 > COMMAND_LIMIT and not self._may_be_long(line):
                raise BadCommand("line too long")
            command = parse(line)
            if command.verb not in IN_AUTHORIZATION:
                raise BadCommand("log in first")
            self._dispatch(command, user)
        except (BadCommand, SaslError) as error:
            self._bad(str(error), keyword_of(line))

    def _dispatch(self, command: Command, user: bytes | None) -> None:
        match command.verb:
            case "USER":
                if self.offer.rpop is None:
                    self._require_passwords()
                self._user = command.text.strip(b" ")
                self._reply("USER", replies.ok("send PASS"))
            case "PASS":
                self._require_passwords()
                if user is None:
                    raise BadCommand("send USER first")
                self._offer(PasswordCredential(Mechanism.USER, decode_name(user), Secret(command.text)))
            case "APOP":
                if self.offer.timestamp is None:
                    raise BadCommand("APOP is not offered here")
                self._offer(apop.parse(command.text, self.offer.timestamp))
            case "RPOP":
                if self.offer.rpop is None:
                    raise BadCommand("RPOP is not offered here")
                if user is None:
                    raise BadCommand("send USER first")
                self._offer(RpopCredential(decode_name(user), Secret(command.text.strip(b" ")), self.offer.rpop))
            case "AUTH":
                self._auth(command.text)
            case "STLS":
                self._stls()
            case "XCLIENT":
                if not self.offer.xclient:
                    raise BadCommand("XCLIENT is not taken from you")
                self._waiting = True
                self._events.append(FrontSpoke(command.text))
            case "CAPA":
                self._capa = self._capa or capabilities.render(self.offer.capabilities())
                self._reply("CAPA", self._capa)
            case "NOOP":
                self._reply("NOOP", replies.ok())
            case _:
                self._reply("QUIT", replies.ok("Bye"))
                self._finish(CloseReason.QUIT_BEFORE_LOGIN)

    def _may_be_long(self, line: bytes) -> bool:
        """An initial response, or what Dovecot forwards of its own in XCLIENT."""
        return line[:5].upper() == b"AUTH " or (self.offer.xclient and line[:8].upper() == b"XCLIENT ")

    def _require_passwords(self) -> None:
        if not self.offer.passwords:
            if self.offer.stls:
                raise BadCommand("passwords are not taken without TLS here, use STLS first")
            raise BadCommand("passwords are not taken here, use another way to log in")

    def _stls(self) -> None:
        if not self.offer.stls:
            raise BadCommand("STLS is not available")
        if len(self._lines):
            # commands sent in the clear behind STLS would be executed inside TLS (CVE-2011-0411)
            self._refuse_and_finish("nothing may follow STLS before TLS", CloseReason.PROTOCOL)
            return
        self._reply("STLS", replies.ok("begin TLS"))
        self._waiting = True
        self._events.append(TlsRequested())

    def _auth(self, text: bytes) -> None:
        name, _, initial = text.strip(b" ").partition(b" ")
        if not name:
            listing = "".join(f"{mechanism}\r\n" for mechanism in self.offer.mechanisms)
            self._reply("AUTH", replies.ok("mechanisms follow") + listing.encode() + b".\r\n")
            return
        factory = self.offer.mechanisms.get(name.decode("ascii", "replace").upper())
        if factory is None:
            if name.upper() in (b"PLAIN", b"LOGIN"):
                self._require_passwords()
            raise BadCommand("this mechanism is not offered here")
        self._sasl = factory()
        try:
            self._sasl_step(None if not initial else b"" if initial == b"=" else _decode(initial))
        except SaslError as error:
            self._sasl_failed(error)

    def _sasl_response(self, line: bytes) -> None:
        if line == b"*":
            self._sasl = None
            self._bad("authentication cancelled", "AUTH")
            return
        try:
            self._sasl_step(_decode(line))
        except SaslError as error:
            self._sasl_failed(error)

    def _sasl_step(self, response: bytes | None) -> None:
        assert self._sasl is not None
        self._sasl_took(self._sasl.step(response))

    def _sasl_took(self, step: Step) -> None:
        match step:
            case Challenge(data):
                self._out.append(b"+ " + base64.b64encode(data) + b"\r\n")
            case NeedStep(token):
                self._waiting = True
                self._events.append(GssStepNeeded(token))
            case NeedVerifier(mechanism, authcid):
                self._waiting = True
                self._events.append(VerifierNeeded(mechanism, authcid))
            case _:
                self._sasl = None
                self._refusal = step.refusal
                self._offer(step.credential)

    def _sasl_failed(self, error: SaslError) -> None:
        self._note_broken_exchange()
        self._sasl = None
        if error.refusal is None:
            self._bad(str(error), "AUTH")
        else:
            self._refuse_in_words_of_the_mechanism(error.refusal, partial(self._bad, str(error), "AUTH"))

    def _refuse_in_words_of_the_mechanism(self, refusal: bytes, farewell: Callable[[], None]) -> None:
        """One more challenge; whatever the client answers to it, `farewell` follows (RFC 7628 section 3.2.3)."""
        self._out.append(b"+ " + base64.b64encode(refusal) + b"\r\n")
        self._farewell = farewell

    def _note_broken_exchange(self) -> None:
        if isinstance(self._sasl, GssapiExchange):
            self._events.append(ExchangeBroken(self._sasl.initiator))

    # ---- small change ----

    def _offer(self, credential: Credential) -> None:
        self._waiting = True
        self._events.append(CredentialOffered(credential))

    def _reply(self, verb: str, data: bytes) -> None:
        self.commands.append((verb, True))
        self._out.append(data)

    def _bad(self, text: str, verb: str = "OTHER") -> None:
        self.commands.append((verb, False))
        self._bad_left -= 1
        if self._bad_left <= 0:
            self._refuse_and_finish("too many errors", CloseReason.TOO_MANY_ERRORS)
        else:
            self._out.append(replies.err(text))

    def _refuse_and_finish(self, text: str, reason: CloseReason) -> None:
        self._out.append(replies.err(text))
        self._finish(reason)

    def _finish(self, reason: CloseReason) -> None:
        self._move(State.CLOSED)
        self._events.append(Finished(reason))

    def _move(self, state: State) -> None:
        if state not in NEXT[self.state]:
            raise LocalProtocolError(f"no way from {self.state.name} to {state.name}")
        self.state = state


def _decode(text: bytes) -> bytes:
    """Base64, strictly. Raises SaslError."""
    try:
        return base64.b64decode(text.strip(b" "), validate=True)
    except (binascii.Error, ValueError):
        raise SaslError("this is not base64") from None
