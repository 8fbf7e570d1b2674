"""The backend-facing core: from a server's greeting to a maildrop that is open. Octets in, events and octets out.

Greeting, STLS if the pool asks for it, CAPA if it is not known yet, then the first login that can be used. Strict
where a hostile or broken server could lead us on: one greeting line, nothing unread behind STLS, no answer that was
not asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum, auto

from popproxy.errors import BackendError, LocalProtocolError, RemoteProtocolError
from popproxy.pop3 import capabilities
from popproxy.pop3.client_events import AccessTokenNeeded, Event, LoggedIn, Refused, StartTls, TokenNeeded
from popproxy.pop3.client_sasl import Auth, Line, challenge_in
from popproxy.pop3.commands import COMMAND_LIMIT
from popproxy.pop3.lines import LineSplitter, LineTooLong
from popproxy.pop3.logins import Apop, Bearer, External, Gssapi, Login, Plain, UserPass
from popproxy.pop3.replies import REPLY_LINE_LIMIT, Status, parse_status
from popproxy.sasl import apop
from popproxy.sasl.client import ExternalClient, NeedToken, PlainClient, SaslClient
from popproxy.sasl.gssapi import GssSecurity
from popproxy.sasl.gssapi_client import GssapiClient
from popproxy.sasl.oauth_client import bearer_client
from popproxy.types import Secret

CAPA_LINES_LIMIT = 100
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
# servers older than RFC 2449 say in words that the maildrop is locked; shown as a wrong password it drives users mad
# (an account that is locked is another matter: that is a refusal, and a guesser must not have it counted as less)
_LOCKED_IN_WORDS = re.compile(
    rb"(?!.*\b(?:account|locked out|password)\b).*(?:\block(?:ed)?\b|\bin use\b|\bbusy\b)", re.IGNORECASE | re.DOTALL
)


class _Step(Enum):
    GREETING = auto()
    STLS = auto()
    TLS = auto()
    XCLIENT = auto()
    CAPA = auto()
    CAPA_BODY = auto()
    USER = auto()
    PASS = auto()
    APOP = auto()
    TOKEN = auto()  # token_made or access_token
    AUTH = auto()
    DONE = auto()


_DEAF = frozenset({_Step.TLS, _Step.TOKEN, _Step.DONE})  # steps in which the server has nothing to say


class ClientConnection:
    """One login at one backend.

    `logins` in order of preference; `known` is the server's CAPA from an earlier session, or None to ask for it.
    Every method that takes octets raises BackendError when the server cannot be used.
    """

    def __init__(
        self,
        logins: Sequence[Login],
        *,
        stls: bool = False,
        known: capabilities.Capabilities | None = None,
        xclient: bytes = b"",
    ) -> None:
        if not logins:
            raise LocalProtocolError("no way to log in")
        self._untried = iter(logins)
        self._stls = stls
        self._xclient = xclient  # the command that says who the client is; empty if the server is not to be told
        self._known = known
        self._learned: capabilities.Capabilities | None = None
        self._step = _Step.GREETING
        self._lines = LineSplitter(REPLY_LINE_LIMIT)
        self._body: list[bytes] = []
        self._timestamp: bytes | None = None
        self._login: Login = logins[0]
        self._user_refused: Status | None = None  # of a USER that was sent together with its PASS
        self._pipelined = False
        self._logged_in = False
        self._auth: Auth | None = None
        self._out: list[bytes] = []
        self._events: list[Event] = []
        self.credential_sent = False  # from here on nothing is retried elsewhere

    @property
    def stage(self) -> str:
        """Where it stands, as a metric label: greeting, tls, capa or login."""
        return {
            _Step.GREETING: "greeting",
            _Step.STLS: "tls",
            _Step.TLS: "tls",
            _Step.XCLIENT: "greeting",
            _Step.CAPA: "capa",
            _Step.CAPA_BODY: "capa",
        }.get(self._step, "login")

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take octets from the server. Raises BackendError."""
        self._lines.feed(data)
        try:
            while self._step not in _DEAF:
                line = self._lines.next_line()
                if line is None:
                    break
                self._line(line)
        except LineTooLong:
            raise BackendError("endless line", self.stage, "protocol") from None
        except RemoteProtocolError as error:
            raise BackendError(str(error), self.stage, "protocol") from None
        if len(self._lines) and (self._logged_in or self._step is _Step.TOKEN):
            raise BackendError("octets that answer nothing", "login", "protocol")

    def receive_eof(self) -> None:
        """The server closed. Raises BackendError unless all is done."""
        if self._step is _Step.PASS and self._user_refused is not None:
            self._refused(self._user_refused)  # it left without a word about the PASS that was sent along
        elif self._step is not _Step.DONE:
            raise BackendError("connection closed", self.stage, "eof")

    def events_received(self) -> list[Event]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events

    def data_to_send(self) -> bytes:
        """Octets for the server since the last call. They may hold a password: never log them."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def upgrade_to_tls(self) -> None:
        """TLS has started (RFC 2595); what the server said before is forgotten. Raises LocalProtocolError."""
        if self._step is not _Step.TLS or len(self._lines):
            raise LocalProtocolError("TLS was not agreed on")
        self._after_tls()

    def token_made(self, context: GssSecurity, token: bytes | None) -> None:
        """The GSS context has made the token that was asked for. Raises BackendError."""
        if self._step is not _Step.TOKEN or self._auth is None:
            raise LocalProtocolError("no token was asked for")
        if len(self._lines):
            raise BackendError("octets that answer nothing", "login", "protocol")
        self._auth_step(self._auth.token_made(context, token))

    def access_token(self, token: Secret) -> None:
        """The access token that was asked for. Raises BackendError."""
        login = self._login
        if self._step is not _Step.TOKEN or not isinstance(login, Bearer) or self._auth is not None:
            raise LocalProtocolError("no access token was asked for")
        if len(self._lines):
            raise BackendError("octets that answer nothing", "login", "protocol")
        self._authenticate(bearer_client(login.mechanism, _word(login.user), token), two_lines=login.two_lines)

    def skip_login(self) -> bool:
        """The token cannot be had, and nothing of this login was sent: go on with the next. False if there is none."""
        if self._step is not _Step.TOKEN or self._auth is None or self._auth.begun:
            raise LocalProtocolError("this login cannot be skipped")
        self._auth = None
        login = self._next_login()
        if login is None:
            return False
        self._begin(login)
        return True

    def leave(self) -> None:
        """QUIT: we only wanted to know whether it would work. What the server says to that is of no interest."""
        self._out.append(b"QUIT\r\n")
        self._step = _Step.DONE

    # ---- dialogue ----

    def _line(self, line: bytes) -> None:
        if self._step is _Step.CAPA_BODY:
            self._capa_line(line)
            return
        if self._auth is not None and (challenge := challenge_in(line)) is not None:
            self._auth_step(self._auth.challenged(challenge))
            return
        status = parse_status(line)
        match self._step:
            case _Step.GREETING:
                self._greeting(line, status)
            case _Step.STLS:
                self._stls_answered(status)
            case _Step.XCLIENT:
                self._xclient_answered(status)
            case _Step.CAPA:
                self._capa_answered(status)
            case _Step.USER:
                self._user_answered(status)
            case _:
                self._login_answered(status)

    def _greeting(self, line: bytes, status: Status) -> None:
        if not status.ok:
            code = "SYS/PERM" if status.code == "SYS/PERM" else "SYS/TEMP"
            raise BackendError("the server refuses connections", "greeting", "rejected", code)
        if len(self._lines):
            raise BackendError("more than one greeting", "greeting", "protocol")
        self._timestamp = apop.find_timestamp(line)
        if self._stls:
            self._send(b"STLS\r\n", _Step.STLS)
        else:
            self._after_tls()

    def _stls_answered(self, status: Status) -> None:
        if not status.ok:
            raise BackendError("the server refuses STLS", "tls", "rejected")  # never on in plain text
        if len(self._lines):
            raise BackendError("plain text behind the answer to STLS", "tls", "protocol")
        self._step = _Step.TLS
        self._events.append(StartTls())

    def _after_tls(self) -> None:
        if self._xclient:
            self._send(self._xclient, _Step.XCLIENT)
        else:
            self._ask_or_log_in()

    def _xclient_answered(self, status: Status) -> None:
        if not status.ok:  # it would take all clients for us, and punish all for what one of them guesses
            raise BackendError("the server refuses XCLIENT", "greeting", "rejected")
        self._ask_or_log_in()

    def _ask_or_log_in(self) -> None:
        if self._known is None:
            self._send(b"CAPA\r\n", _Step.CAPA)
        else:
            self._start_login()

    def _capa_answered(self, status: Status) -> None:
        if status.ok:
            self._step = _Step.CAPA_BODY
        else:
            self._learned = {}
            self._start_login()

    def _capa_line(self, line: bytes) -> None:
        if line == b".":
            self._learned = capabilities.parse(self._body)
            self._start_login()
        elif len(self._body) >= CAPA_LINES_LIMIT:
            raise BackendError("endless CAPA", "capa", "protocol")
        else:
            self._body.append(line)

    def _start_login(self) -> None:
        login = self._next_login()
        if login is None:
            raise BackendError("the server offers none of the ways to log in", "login", "rejected", "SYS/PERM")
        self._begin(login)

    def _next_login(self) -> Login | None:
        return next((login for login in self._untried if self._offered(login)), None)

    def _offered(self, login: Login) -> bool:
        """False if the server has said that it has no such way: no timestamp for APOP, a list without the mechanism."""
        match login:
            case UserPass():
                return True
            case Apop():
                return self._timestamp is not None
            case Bearer():
                name: str = login.mechanism
            case Plain():
                name = PlainClient.name
            case External():
                name = ExternalClient.name
            case Gssapi():
                name = GssapiClient.name
        offered = (self._able or {}).get("SASL")
        return offered is None or name in (word.upper() for word in offered)

    @property
    def _able(self) -> capabilities.Capabilities | None:
        return self._known if self._learned is None else self._learned

    def _begin(self, login: Login) -> None:
        self._login = login
        match login:
            case UserPass():
                self._begin_user(login)
            case Apop():
                assert self._timestamp is not None
                answer = apop.digest(self._timestamp, login.secret).reveal()
                self._credential(b"APOP " + _word(login.user) + b" " + answer + b"\r\n", _Step.APOP)
            case Plain():
                self._authenticate(PlainClient(_word(login.authzid), _word(login.authcid), login.password))
            case External():
                self._authenticate(ExternalClient(_word(login.authzid)))
            case Gssapi():
                self._authenticate(GssapiClient(_word(login.authzid), login.layers))
            case Bearer():
                _word(login.user)  # before a token is asked for that cannot be used
                self._step = _Step.TOKEN
                self._events.append(AccessTokenNeeded(login))

    def _authenticate(self, mechanism: SaslClient, *, two_lines: bool = False) -> None:
        self._auth = Auth(mechanism, two_lines=two_lines)
        self._auth_step(self._auth.start())

    def _begin_user(self, login: UserPass) -> None:
        able = self._able
        self._pipelined = able is not None and "PIPELINING" in able
        user = b"USER " + _word(login.user) + b"\r\n"
        if self._pipelined:
            self._credential(user + self._pass_line(login), _Step.USER)
        else:
            self._send(user, _Step.USER)

    def _auth_step(self, step: Line | NeedToken) -> None:
        if isinstance(step, NeedToken):
            assert isinstance(self._login, Gssapi)
            self._step = _Step.TOKEN
            self._events.append(TokenNeeded(self._login, step.token))
        elif step.credential:
            self._credential(step.octets, _Step.AUTH)
        else:
            self._send(step.octets, _Step.AUTH)

    def _pass_line(self, login: UserPass) -> bytes:
        line = b"PASS " + login.password.reveal() + b"\r\n"
        if len(line) > COMMAND_LIMIT or _CONTROL.search(line, 0, len(line) - 2):
            raise BackendError("a password that cannot be sent by PASS", "login", "protocol", "SYS/PERM")
        return line

    def _user_answered(self, status: Status) -> None:
        assert isinstance(self._login, UserPass)
        if self._pipelined:
            self._user_refused = None if status.ok else status
            self._step = _Step.PASS
        elif status.ok:
            self._credential(self._pass_line(self._login), _Step.PASS)
        else:
            self._refused(status)

    def _login_answered(self, status: Status) -> None:
        if self._user_refused is not None:
            self._refused(self._user_refused)
        elif status.ok:
            protection = None if self._auth is None else self._auth.succeed()
            self._step = _Step.DONE
            self._logged_in = True
            self._events.append(LoggedIn(self._login, self._learned, protection))
        else:
            self._refused(status)

    def _refused(self, status: Status) -> None:
        code = status.code
        if code is None and _LOCKED_IN_WORDS.match(status.text):
            code = "IN-USE"
        self._step = _Step.DONE
        self._events.append(Refused(self._login, code))

    def _send(self, data: bytes, step: _Step) -> None:
        if len(self._lines):  # it would be taken for the answer to what has not been asked yet
            raise BackendError("octets that answer nothing", self.stage, "protocol")
        self._out.append(data)
        self._step = step

    def _credential(self, data: bytes, step: _Step) -> None:
        self._send(data, step)
        self.credential_sent = True


def _word(name: str) -> bytes:
    """A user name for a command line. Raises BackendError: routing must not have made a name that cannot be sent."""
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no octet
        raw = b""
    if not raw or len(raw) > 255 or _CONTROL.search(raw):
        raise BackendError("a user name that cannot be sent", "login", "protocol", "SYS/PERM")
    return raw
