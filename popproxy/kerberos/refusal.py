"""Why Kerberos said no: one closed set of reasons for GSSAPI, AP-REQ and their error codes (RFC 4120 section 7.5.9)."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from popproxy.errors import PopproxyError

MAX_TOKEN: Final = 64 * 1024
"""Octets of a token or AP-REQ. Tickets with many groups (Active Directory) reach tens of KiB."""

_BASE: Final = -1765328384
"""ERROR_TABLE_BASE_krb5: library codes are this plus the number on the wire."""
_WIRE_CODES: Final = range(128)


class Refusal(StrEnum):
    """Why a ticket was not accepted: in the audit record and in metrics."""

    REPLAY = "replay"
    SKEW = "skew"
    EXPIRED = "expired"
    WRONG_SERVICE = "wrong_service"
    WRONG_REALM = "wrong_realm"
    KEYTAB = "keytab"  # it does not have the key the ticket was made with, or it cannot be read
    GARBAGE = "garbage"  # no token, a damaged one, or one made with another key
    CHANNEL_BINDING = "channel_binding"
    UNAVAILABLE = "unavailable"  # replay cache or library out of order


class KerberosRefused(PopproxyError):
    """A ticket was not accepted.

    `temporary` is True when the fault is ours (keytab unreadable, replay cache not writable): the client is then told
    [SYS/TEMP], never [AUTH]. `token` is what the protocol wants sent back, if anything: a GSSAPI error token, or the
    DER of a KRB-ERROR. The text names no principal and holds no octet of the ticket.
    """

    def __init__(self, reason: Refusal, *, temporary: bool = False, token: bytes | None = None) -> None:
        super().__init__(f"Kerberos refused: {reason}")
        self.reason = reason
        self.temporary = temporary
        self.token = token


_REASONS: Final = {
    28: Refusal.WRONG_REALM,  # KDC_ERR_PATH_NOT_ACCEPTED
    31: Refusal.GARBAGE,  # KRB_AP_ERR_BAD_INTEGRITY
    32: Refusal.EXPIRED,  # KRB_AP_ERR_TKT_EXPIRED
    33: Refusal.SKEW,  # KRB_AP_ERR_TKT_NYV
    34: Refusal.REPLAY,  # KRB_AP_ERR_REPEAT
    35: Refusal.WRONG_SERVICE,  # KRB_AP_ERR_NOT_US
    37: Refusal.SKEW,  # KRB_AP_ERR_SKEW
    43: Refusal.WRONG_REALM,  # KRB_AP_ERR_ILL_CR_TKT
    44: Refusal.KEYTAB,  # KRB_AP_ERR_BADKEYVER
    45: Refusal.KEYTAB,  # KRB_AP_ERR_NOKEY
    51: Refusal.WRONG_REALM,  # KRB_AP_PATH_NOT_ACCEPTED
    144: Refusal.WRONG_SERVICE,  # KRB5KRB_AP_WRONG_PRINC
    145: Refusal.EXPIRED,  # KRB5KRB_AP_ERR_TKT_INVALID: postdated, not validated
    163: Refusal.REPLAY,  # KRB5_RC_REPLAY
    181: Refusal.WRONG_SERVICE,  # KRB5_KT_NOTFOUND
    230: Refusal.KEYTAB,  # KRB5_KT_KVNONOTFOUND
}
_REPLAY_CACHE: Final = frozenset(range(159, 174)) | {211, 215}  # KRB5_RC_*, the replay itself is found before
WIRE_CODES: Final = {
    Refusal.REPLAY: 34,
    Refusal.SKEW: 37,
    Refusal.EXPIRED: 32,
    Refusal.WRONG_SERVICE: 35,
    Refusal.WRONG_REALM: 35,
}
"""error-code of a KRB-ERROR where popproxy, not the library, has refused; 60 (KRB_ERR_GENERIC) for the rest."""
GENERIC: Final = 60


def reason_of(code: int) -> Refusal | None:
    """The reason behind a code of libkrb5 (a negative number), or None if it does not tell."""
    number = code - _BASE
    if number in _REASONS:
        return _REASONS[number]
    if number in _REPLAY_CACHE:
        return Refusal.UNAVAILABLE
    return Refusal.GARBAGE if number in _WIRE_CODES else None


def wire_code(code: int) -> int:
    """The number for the error-code field of a KRB-ERROR."""
    number = code - _BASE
    return number if number in _WIRE_CODES else GENERIC
