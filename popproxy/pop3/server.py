"""The client-facing core in AUTHORIZATION: octets in, events and octets out, no input or output of its own.

It speaks the dialogue (RFC 1939 sections 4 and 7, RFC 2449, RFC 2595, RFC 5034) and judges nothing: a complete
credential becomes a `CredentialOffered`, and the core then waits, keeping what the client pipelines, until
`login_accepted` or `login_failed` is called. After `login_accepted` the exchange of TRANSACTION takes over with
`take_rest`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from popproxy.errors import LocalProtocolError
from popproxy.pop3 import capabilities, replies
from popproxy.pop3.commands import COMMAND_LIMIT, BadCommand, Command, keyword_of, parse
from popproxy.pop3.lines import LineSplitter, LineTooLong
from popproxy.pop3.offer import Offer
from popproxy.pop3.server_events import CredentialOffered, Event, Finished, FrontSpoke, TlsRequested
from popproxy.pop3.server_sasl import Auth, Next, challenge
from popproxy.pop3.states import IN_AUTHORIZATION, NEXT, State
from popproxy.sasl import apop
from popproxy.sasl.credentials import Credential, PasswordCredential, RpopCredential
from popproxy.sasl.gssapi import GssContext
from popproxy.sasl.mechanism import SaslError, decode_name
from popproxy.sasl.scram_verifier import ScramVerifier
from popproxy.types import CloseReason, Mechanism, Secret
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
    b"GET ", b"POST ", b"PUT ", b"HEAD ", b"OPTIONS ", b"DELETE ", b"CONNECT ", b"PATCH ", b"HELO", b"EHLO", b"LHLO",
    b"PROXY ",
)  # fmt: skip
"""Beginnings of other protocols: browsers and mail servers led here, and PROXY headers from peers nobody trusts."""


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
        self._auth: Auth | None = None  # under way, or waiting for its verdict
        self._farewell: Callable[[], None] | None = None  # -ERR, once the client has answered a mechanism's refusal
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
        self._user = self._auth = self._farewell = None
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
        if self._auth is None:
            raise LocalProtocolError("no AUTH is under way")
        try:
            self._auth_goes_on(self._auth.step_done(context, answer))
        except SaslError as error:
            self._auth_failed(self._auth, error)
        self._advance()

    def verifier_found(self, verifier: ScramVerifier) -> None:
        """What `VerifierNeeded` asked for, or a made-up one."""
        if self._auth is None:
            raise LocalProtocolError("no AUTH is under way")
        self._auth_goes_on(self._auth.verifier_found(verifier))
        self._advance()

    def login_failed(self, text: str, code: str | None, final: CloseReason | None = None) -> None:
        """The credential is not good, or cannot be judged now. `final`: say so and end the connection."""
        self._waiting = False
        auth, self._auth = self._auth, None
        refusal = None if auth is None else auth.refusal

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
                if self._auth is not None:
                    self._note_broken(self._auth)
                self._auth = self._user = self._farewell = None
                self._bad("line too long")
                self._limit_input()
                continue
            if self._limit_input() or line is None:
                break
            if self._auth is not None:
                self._auth_response(self._auth, line)
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
        if line[:8].upper().startswith(_OTHER_PROTOCOLS):  # ALPACA: nothing echoed, no second try
            self._refuse_and_finish("this is a POP3 server", CloseReason.PROTOCOL)
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
                self._begin_auth(command.text)
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

    def _begin_auth(self, text: bytes) -> None:
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
        auth = self._auth = Auth(factory())
        try:
            self._auth_goes_on(auth.start(initial))
        except SaslError as error:
            self._auth_failed(auth, error)

    def _auth_response(self, auth: Auth, line: bytes) -> None:
        if line == b"*":
            self._auth = None
            self._bad("authentication cancelled", "AUTH")
            return
        try:
            self._auth_goes_on(auth.response(line))
        except SaslError as error:
            self._auth_failed(auth, error)

    def _auth_goes_on(self, found: Next) -> None:
        self._waiting = not isinstance(found, bytes)
        if isinstance(found, bytes):
            self._out.append(found)
        else:
            self._events.append(found)

    def _auth_failed(self, auth: Auth, error: SaslError) -> None:
        self._auth, self._waiting = None, False
        self._note_broken(auth)
        if error.refusal is None:
            self._bad(str(error), "AUTH")
        else:
            self._refuse_in_words_of_the_mechanism(error.refusal, partial(self._bad, str(error), "AUTH"))

    def _refuse_in_words_of_the_mechanism(self, refusal: bytes, farewell: Callable[[], None]) -> None:
        """One more challenge; whatever the client answers to it, `farewell` follows (RFC 7628 section 3.2.3)."""
        self._out.append(challenge(refusal))
        self._farewell = farewell

    def _note_broken(self, auth: Auth) -> None:
        broken = auth.broken()
        if broken is not None:
            self._events.append(broken)

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
