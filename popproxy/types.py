"""Small values that every layer speaks of. No input or output, no policy."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NewType, NoReturn

SessionId = NewType("SessionId", str)
"""Random and unique per session; in the audit log, the operational log and later towards the backend."""


class Secret:
    """A password, key or digest that must never be printed.

    Compares in constant time, hides itself from ``repr`` and ``str``, cannot be pickled, copied into a log or hashed.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes | str) -> None:
        self._value = value.encode() if isinstance(value, str) else bytes(value)

    def reveal(self) -> bytes:
        """The value itself. Call it only where the bytes are used."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Secret(****)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address (or a host name, where one is allowed) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TlsInfo:
    """What a finished TLS handshake agreed on. `version` as Python names it: ``TLSv1.3``."""

    version: str
    cipher: str
    server_name: str | None = None


class Word(StrEnum):
    """A word of a closed set. Its hash is that of the text, in C: these are looked up for every session."""

    __hash__ = str.__hash__


class Mechanism(Word):
    """How a client proved who it is. Also the label of the authentication metrics."""

    USER = "USER"
    APOP = "APOP"
    RPOP = "RPOP"
    PLAIN = "PLAIN"
    LOGIN = "LOGIN"
    CRAM_MD5 = "CRAM-MD5"
    SCRAM_SHA_1 = "SCRAM-SHA-1"
    SCRAM_SHA_1_PLUS = "SCRAM-SHA-1-PLUS"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_256_PLUS = "SCRAM-SHA-256-PLUS"
    EXTERNAL = "EXTERNAL"
    OAUTHBEARER = "OAUTHBEARER"
    XOAUTH2 = "XOAUTH2"
    GSSAPI = "GSSAPI"
    KPOP = "KPOP"


@dataclass(frozen=True, slots=True)
class Location:
    """Where a directory says that a user's maildrop is; what it does not say is None.

    Either of `pool` and `server` (port 0: whichever) leads there; `backend_user` is the user's name there, `password`
    what to log in with there instead of what the client has sent.
    """

    pool: str | None = None
    server: Address | None = None
    backend_user: str | None = None
    password: Secret | None = None


@dataclass(frozen=True, slots=True)
class Visit:
    """Where a login comes from, for those who judge by that too. `attempt` counts from 1 in each session.

    `certificate` is the one that TLS has verified, in DER; None if the client has shown none, or there is no TLS.
    """

    client: Address
    tls: bool
    attempt: int
    certificate: bytes | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """The one value that says who is logged in, from authentication onwards.

    `user` is the authorisation identity in canonical form; `authcid` what the client claimed to be. `proven` is False
    until the backend has confirmed a passed-through password. `principal` is who Kerberos says it is, if it was asked.
    `location` is what the directory that accepted the user said besides.
    """

    user: str
    authcid: str
    mechanism: Mechanism
    proven: bool = True
    principal: str = ""
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a decision, for an administrator: what was looked at, and what came of it.

    `key` is the way to what stands behind it in the configuration (``("routing", "rules", 0)``), () for nothing.
    `outcome`: done (it goes on from here), passed (asked, but it does not apply), refused (it ends here) or open (that
    depends on what the client does).
    """

    text: str
    key: tuple[str | int, ...] = ()
    outcome: Literal["done", "passed", "refused", "open"] = "done"


class Outcome(Word):
    """ECS ``event.outcome``."""

    SUCCESS = "success"
    FAILURE = "failure"
    UNKNOWN = "unknown"


class CloseReason(Word):
    """Why a session ended: closed set, in the ``session_end`` record and the metric ``sessions_ended_total``."""

    LOGOUT = "logout"  # QUIT answered in TRANSACTION, UPDATE done
    QUIT_BEFORE_LOGIN = "quit_before_login"
    UPDATE_REFUSED = "update_refused"  # the backend answered -ERR to QUIT
    UPDATE_UNKNOWN = "update_unknown"  # QUIT was sent, no answer came
    CLIENT_LOST = "client_lost"  # FIN or RST without QUIT
    CLIENT_STALL = "client_stall"  # did not read for too long
    BACKEND_LOST = "backend_lost"
    BACKEND_STALL = "backend_stall"
    BACKEND_UNAVAILABLE = "backend_unavailable"  # never reached, or refused the proxy
    BACKEND_PROTOCOL = "backend_protocol"  # sent what POP3 does not allow
    IDLE = "idle"  # inactivity timer in TRANSACTION (RFC 1939 section 3)
    LOGIN_TIMEOUT = "login_timeout"
    TOO_MANY_FAILURES = "too_many_failures"  # with KPOP, one
    TOO_MANY_ERRORS = "too_many_errors"
    PROTOCOL = "protocol"  # the client sent what may not be sent (pipelined STLS, endless line, HTTP)
    TLS = "tls"
    PROXY_HEADER = "proxy_header"
    XCLIENT = "xclient"  # a trusted front's was malformed, or its TTL used up
    REFUSED = "refused"  # connection limits
    AUDIT = "audit"  # the audit log could not be written
    SHUTDOWN = "shutdown"
    KICKED = "kicked"  # by an operator
    INTERNAL = "internal"  # a bug of ours, logged


class AuthFailure(Word):
    """Why a login did not succeed: closed set, in the audit record and in ``auth_attempts_total{reason}``."""

    NONE = "none"
    BAD_CREDENTIALS = "bad_credentials"  # unknown user, wrong password: told apart nowhere
    CONTROL_CHARACTER = "control_character"
    EMPTY = "empty"
    MALFORMED = "malformed"
    AUTHZID = "authzid"
    DISABLED = "disabled"  # by the users file, whatever the user has shown, or by a directory
    NO_ROUTE = "no_route"
    UNAVAILABLE = "unavailable"
    BACKEND_REFUSED_PROXY = "backend_refused_proxy"
    BACKEND_UNAVAILABLE = "backend_unavailable"
    NO_TICKET = "no_ticket"  # the KDC gives none for the backend
    NO_TOKEN = "no_token"  # noqa: S105 - the endpoint gives no access token for the backend
    IN_USE = "in_use"
    LOGIN_DELAY = "login_delay"
    AUDIT = "audit"
    THROTTLED = "throttled"  # too many wrong passwords before: this one was not looked at
    SESSION_LIMIT = "session_limit"  # the user has as many sessions as he may
    KERBEROS_REPLAY = "kerberos_replay"
    KERBEROS_SKEW = "kerberos_skew"
    KERBEROS_EXPIRED = "kerberos_expired"
    KERBEROS_SERVICE = "kerberos_service"  # the ticket is for another service
    KERBEROS_REALM = "kerberos_realm"
    KERBEROS_KEYTAB = "kerberos_keytab"  # which does not have the key that the ticket was made with
    KERBEROS_GARBAGE = "kerberos_garbage"
    KDC_NOT_PROVEN = "kdc_not_proven"  # it does not know our key: a false one, or the keytab is out of date
    CHANNEL_BINDING = "channel_binding"
    AMBIGUOUS = "ambiguous"  # a directory knows several users of this name
    ACCOUNT_EXPIRED = "account_expired"  # these four are what directories and PAM say of an account
    ACCOUNT_LOCKED = "account_locked"
    ACCOUNT_RESTRICTED = "account_restricted"  # not at this time, or not from here
    PASSWORD_EXPIRED = "password_expired"  # noqa: S105 - a reason
    CERTIFICATE = "certificate"  # expired or revoked
    TOKEN_INVALID = "token_invalid"  # noqa: S105 - not a token, not signed by an issuer that we know, or not for us
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 - or not valid yet
    TOKEN_SCOPE = "token_scope"  # noqa: S105 - not good for mail
    HELD = "held"  # by an operator, while the mail is moved
    MECHANISM_ENDED = "mechanism_ended"  # the policy has given it up for this user
    NOT_MAPPED = "not_mapped"  # no rule gives this principal a mailbox


class ThrottleScope(Word):
    """What a login was refused for: closed set, the label of ``auth_throttled_total`` and ``penalties_tracked``."""

    ADDRESS = "address"
    NETWORK = "network"  # an IPv6 /48
    USER_ADDRESS = "user_address"
    ACCOUNT = "account"
    TOTAL = "total"
