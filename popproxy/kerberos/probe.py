"""Asks a KDC whether it has the keys of a keytab, and what time it is, as an operator would with kinit -k and kvno."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_int32, c_uint32, c_void_p
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Final

from popproxy.errors import PopproxyError
from popproxy.kerberos.libkrb5 import CREDS_SIZE, Context, Data, Krb5Failure, Ticket, TicketTimes, enctype_name
from popproxy.kerberos.libkrb5 import this_thread as context_of_this_thread

_LIFETIME: Final = 60  # seconds: the ticket is thrown away at once
_BASE: Final = -1765328384


class ProbeRefusal(Enum):
    """Why there is no ticket."""

    NO_CLIENT = auto()  # the KDC has no account of that name
    NO_SERVICE = auto()
    KEY = auto()  # the KDC has another key for the account than the keytab
    ENCTYPE = auto()  # the KDC does not take keys of this kind
    LOCKED = auto()  # disabled or expired
    CLOCK = auto()
    NO_REALM = auto()  # nothing says where its KDC is
    SILENT = auto()  # none of the realm's KDCs answers
    OTHER = auto()


_REFUSALS: Final = {
    1: ProbeRefusal.LOCKED,  # KDC_ERR_NAME_EXP
    2: ProbeRefusal.LOCKED,  # KDC_ERR_SERVICE_EXP
    6: ProbeRefusal.NO_CLIENT,  # KDC_ERR_C_PRINCIPAL_UNKNOWN
    7: ProbeRefusal.NO_SERVICE,  # KDC_ERR_S_PRINCIPAL_UNKNOWN
    14: ProbeRefusal.ENCTYPE,  # KDC_ERR_ETYPE_NOSUPP
    18: ProbeRefusal.LOCKED,  # KDC_ERR_CLIENT_REVOKED
    19: ProbeRefusal.LOCKED,  # KDC_ERR_SERVICE_REVOKED
    23: ProbeRefusal.LOCKED,  # KDC_ERR_KEY_EXPIRED
    24: ProbeRefusal.KEY,  # KDC_ERR_PREAUTH_FAILED
    31: ProbeRefusal.KEY,  # KRB_AP_ERR_BAD_INTEGRITY: a KDC without pre-authentication
    37: ProbeRefusal.CLOCK,  # KRB_AP_ERR_SKEW
    154: ProbeRefusal.NO_REALM,  # KRB5_REALM_UNKNOWN
    156: ProbeRefusal.SILENT,  # KRB5_KDC_UNREACH
    181: ProbeRefusal.KEY,  # KRB5_KT_NOTFOUND: no key of a kind that the KDC asks for
    220: ProbeRefusal.SILENT,  # KRB5_REALM_CANT_RESOLVE
}


class ProbeRefused(PopproxyError):
    """The KDC gave no ticket. `code` is the library's, for OTHER."""

    def __init__(self, reason: ProbeRefusal, code: int) -> None:
        super().__init__(f"no ticket: {reason.name} ({code})")
        self.reason = reason
        self.code = code


@dataclass(frozen=True, slots=True)
class KdcAnswer:
    """What tickets for the service look like, and how many seconds the KDC's clock is ahead of ours."""

    version: int
    encryption: str
    clock_ahead: int


class _Creds(ctypes.Structure):
    """krb5_creds up to the ticket."""

    _fields_ = (
        ("magic", c_int32),
        ("client", c_void_p),
        ("server", c_void_p),
        ("keyblock", c_uint32 * 6),
        ("times", TicketTimes),
        ("is_skey", c_uint32),
        ("flags", c_int32),
        ("addresses", c_void_p),
        ("ticket", Data),
    )


def ask(keytab: Path, client: str, service: str) -> KdcAnswer:
    """Log `client` in with its key and get a ticket for `service` at once. Blocks, for half a minute if nobody answers.

    A service may be its own client, except with Active Directory, where only accounts can log in. Raises ProbeRefused,
    and Unavailable without libkrb5.
    """
    try:
        return _ask(context_of_this_thread(), keytab, client, service)
    except Krb5Failure as failure:
        raise ProbeRefused(_REFUSALS.get(failure.code - _BASE, ProbeRefusal.OTHER), failure.code) from None


def _ask(context: Context, keytab: Path, client: str, service: str) -> KdcAnswer:
    creds, options = ctypes.create_string_buffer(CREDS_SIZE), c_void_p()
    context.call("krb5_get_init_creds_opt_alloc", context.handle, byref(options))
    try:
        context.option("krb5_get_init_creds_opt_set_tkt_life", options, _LIFETIME)
        with context.principal(client) as who, context.keytab(f"FILE:{keytab}") as keys:
            context.call("krb5_get_init_creds_keytab", context.handle, creds, who, keys, 0, service.encode(), options)
        seconds, microseconds = c_int32(), c_int32()
        context.call("krb5_get_time_offsets", context.handle, byref(seconds), byref(microseconds))
        ticket = POINTER(Ticket)()
        context.call("krb5_decode_ticket", byref(_Creds.from_buffer(creds).ticket), byref(ticket))
        try:
            part = ticket.contents.enc_part
            return KdcAnswer(part.kvno, enctype_name(part.enctype), seconds.value)
        finally:
            context.free("krb5_free_ticket", ticket)
    finally:
        context.free("krb5_free_cred_contents", creds)
        context.free("krb5_get_init_creds_opt_free", options)
