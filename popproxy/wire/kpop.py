"""KPOP's handshake with Kerberos 5: the server's side of MIT's ``sendauth`` framing. There is no RFC.

The client speaks first: two version strings and an AP-REQ, each behind its length in four octets. One octet answers
the versions; a KRB-ERROR, or a zero length and (if it was asked for) an AP-REP, the AP-REQ. Then comes ordinary POP3,
greeting first. Whoever comes here by mistake is told so in its own language as far as possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Final

from popproxy.errors import LocalProtocolError

SENDAUTH_VERSION: Final = b"KRB5_SENDAUTH_V1.0\0"
APPLICATION_VERSION: Final = b"KPOPV1.0\0"
MAX_TOKEN: Final = 64 * 1024
"""Octets of an AP-REQ; tickets that carry an Active Directory PAC reach tens of KiB."""
BACKLOG_LIMIT: Final = 32 * 1024
"""Octets a client may pipeline behind its AP-REQ before we stop reading."""

_VERSION_LIMIT = 255  # octets of a version string, right or wrong, that is read to the end and answered
_KERBEROS_4 = b"AUTHV0.1"
_TLS = b"\x16\x03"
_FRAMED = b"\0\0\0"  # a string of up to _VERSION_LIMIT octets behind its length
_ACCEPTED, _BAD_SENDAUTH_VERSION, _BAD_APPLICATION_VERSION = b"\0", b"\1", b"\2"
_NO_ERROR = bytes(4)
_USE_KPOP = b"-ERR this port takes only Kerberos clients that speak KPOP\r\n"
_NO_KERBEROS_4 = b"-ERR Kerberos 4 is not supported\r\n"
_HANDSHAKE_FAILURE = b"\x15\x03\x01\x00\x02\x02\x28"  # fatal TLS alert 40 (RFC 8446 section 6)


class KpopFailure(StrEnum):
    """Why a handshake did not come to a verdict: closed set, for the log and the metric."""

    KERBEROS_4 = "kerberos_4"
    TLS = "tls"
    PLAIN_TEXT = "plain_text"  # a POP3 client that does not speak KPOP
    GARBAGE = "garbage"
    SENDAUTH_VERSION = "sendauth_version"
    APPLICATION_VERSION = "application_version"
    TOKEN_EMPTY = "token_empty"  # noqa: S105
    TOKEN_TOO_LONG = "token_too_long"  # noqa: S105
    EOF = "eof"
    SILENT = "silent"  # not one octet in time: most likely a POP3 client that waits for a greeting
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class ApReqReceived:
    """The AP-REQ as it came. The handshake waits for `accept` or `refuse`."""

    token: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """No login can come of this: send `data_to_send`, close.

    `owes_error`: the client waits for a KRB-ERROR; call `refuse` first if one can be made.
    """

    reason: KpopFailure
    owes_error: bool = False


Event = ApReqReceived | Failed


class _State(Enum):
    START = auto()  # who is this?
    SENDAUTH = auto()  # the first version string
    APPLICATION = auto()  # the second version string
    AP_REQ = auto()
    VERDICT = auto()  # the caller's turn
    ACCEPTED = auto()
    FAILED = auto()


class KpopHandshake:
    """One client's handshake. What the client pipelines behind its AP-REQ is kept in `rest`."""

    def __init__(self, max_token: int = MAX_TOKEN) -> None:
        self._max_token = max_token
        self._state = _State.START
        self._buffer = bytearray()
        self._silent = True  # nothing has come yet
        self._version_ok = False  # the first version string was right
        self._owes_error = False
        self._out: list[bytes] = []
        self._events: list[Event] = []
        self.eof = False  # the client will send no more

    # ---- surface ----

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take octets from the client; after a failure they are dropped."""
        if self._state is _State.FAILED:
            return
        self._silent = self._silent and not len(data)
        self._buffer += data
        while self._advance():
            pass

    def receive_eof(self) -> None:
        """The client will send no more. Behind an AP-REQ that is its right."""
        self.eof = True
        if self._state not in (_State.VERDICT, _State.ACCEPTED, _State.FAILED):
            self._fail(KpopFailure.EOF)

    def deadline_passed(self) -> None:
        """The client has taken too long; one that said nothing at all is told what is expected here."""
        if self._state in (_State.VERDICT, _State.ACCEPTED, _State.FAILED):
            raise LocalProtocolError("the client has done its part of the handshake")
        self._fail(*((KpopFailure.SILENT, _USE_KPOP) if self._silent else (KpopFailure.TIMEOUT, b"")))

    def accept(self, ap_rep: bytes | None) -> None:
        """The AP-REQ is good; `ap_rep` answers it if the client asked for mutual authentication."""
        if self._state is not _State.VERDICT:
            raise LocalProtocolError("no AP-REQ waits for a verdict")
        self._state = _State.ACCEPTED
        self._out.append(_NO_ERROR)
        if ap_rep is not None:
            self._out.append(_framed(ap_rep))

    def refuse(self, krb_error: bytes) -> None:
        """Answer the AP-REQ with a KRB-ERROR (DER); close when it is sent."""
        if self._state is not _State.VERDICT and not self._owes_error:
            raise LocalProtocolError("no AP-REQ waits for a verdict")
        if not krb_error:
            raise LocalProtocolError("an empty KRB-ERROR would tell the client that it is logged in")
        self._state = _State.FAILED
        self._owes_error = False
        self._buffer.clear()
        self._out.append(_framed(krb_error))

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
    def rest(self) -> bytes:
        """Octets behind the AP-REQ, b"" until there is one."""
        return bytes(self._buffer) if self._state in (_State.VERDICT, _State.ACCEPTED) else b""

    @property
    def backlogged(self) -> bool:
        """True while so much is pipelined behind the AP-REQ that reading should pause."""
        return len(self._buffer) > BACKLOG_LIMIT and self._state is _State.VERDICT

    # ---- dialogue ----

    def _advance(self) -> bool:
        """Take one message off the buffer. False if there is nothing more to be done with it."""
        match self._state:
            case _State.START:
                return self._recognise()
            case _State.SENDAUTH:
                return self._sendauth_version()
            case _State.APPLICATION:
                return self._application_version()
            case _State.AP_REQ:
                return self._ap_req()
            case _:
                return False

    def _recognise(self) -> bool:
        head = bytes(self._buffer[:8])
        if any(sign.startswith(head[: len(sign)]) and len(head) < len(sign) for sign in (_KERBEROS_4, _TLS, _FRAMED)):
            return False
        if head.startswith(_FRAMED):
            self._state = _State.SENDAUTH
            return True
        if head.startswith(_KERBEROS_4):
            return self._fail(KpopFailure.KERBEROS_4, _NO_KERBEROS_4)
        if head.startswith(_TLS):
            return self._fail(KpopFailure.TLS, _HANDSHAKE_FAILURE)
        if 0x20 <= head[0] < 0x7F or head[0] in b"\r\n\t":
            return self._fail(KpopFailure.PLAIN_TEXT, _USE_KPOP)
        return self._fail(KpopFailure.GARBAGE)

    def _sendauth_version(self) -> bool:
        version = self._message(self._length())
        if version is None:
            return False
        # a wrong one is answered behind the second string, as MIT's acceptor does: the client writes both at once
        self._version_ok = version == SENDAUTH_VERSION
        self._state = _State.APPLICATION
        return True

    def _application_version(self) -> bool:
        length = self._length()
        too_long = length is not None and length > _VERSION_LIMIT
        version = None if too_long else self._message(length)
        if version is None and not too_long:
            return False
        if not self._version_ok:
            return self._fail(KpopFailure.SENDAUTH_VERSION, _BAD_SENDAUTH_VERSION)
        if version != APPLICATION_VERSION:
            return self._fail(KpopFailure.APPLICATION_VERSION, _BAD_APPLICATION_VERSION)
        self._out.append(_ACCEPTED)
        self._state = _State.AP_REQ
        return True

    def _ap_req(self) -> bool:
        length = self._length()
        if length is not None and not 0 < length <= self._max_token:
            self._owes_error = True
            return self._fail(KpopFailure.TOKEN_TOO_LONG if length else KpopFailure.TOKEN_EMPTY)
        token = self._message(length)
        if token is None:
            return False
        self._state = _State.VERDICT
        self._events.append(ApReqReceived(token))
        return False

    # ---- small change ----

    def _length(self) -> int | None:
        """What the next four octets say, or None if they have not all come."""
        return int.from_bytes(self._buffer[:4], "big") if len(self._buffer) >= 4 else None

    def _message(self, length: int | None) -> bytes | None:
        """Take the next message off the buffer, or None if it is incomplete."""
        if length is None or len(self._buffer) < 4 + length:
            return None
        message = bytes(self._buffer[4 : 4 + length])
        del self._buffer[: 4 + length]
        return message

    def _fail(self, reason: KpopFailure, last_words: bytes = b"") -> bool:
        self._state = _State.FAILED
        self._buffer.clear()
        if last_words:
            self._out.append(last_words)
        self._events.append(Failed(reason, self._owes_error))
        return False


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message
