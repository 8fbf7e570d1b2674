"""Checks a password against the KDC, and the KDC against the keytab.

Whoever can answer in the KDC's name could vouch for any password. So the user's ticket is used at once to get one for
our own service: only the real KDC knows our key (krb5_verify_init_creds; its default, to let it pass when there is no
keytab, is switched off).
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ctypes import byref, c_void_p
from enum import StrEnum
from pathlib import Path
from typing import Final

from popproxy.errors import PopproxyError, Unavailable
from popproxy.kerberos.libkrb5 import CREDS_SIZE, Context, CredsHead, Krb5Failure, library, this_thread
from popproxy.kerberos.mapping import split_principal
from popproxy.kerberos.service import ServicePrincipals, check_keytab
from popproxy.state.executors import BoundedExecutor
from popproxy.types import Secret

KDC_NOT_PROVEN: Final = "kdc_not_proven"
"""Reason of an Unavailable: whoever answers for the KDC does not know our key."""
_LIFETIME: Final = 300  # seconds: the ticket is thrown away after the check
_BASE: Final = -1765328384
_MALFORMED_NAME: Final = 134  # KRB5_PARSE_MALFORMED
_KDC_UNREACH: Final = 156  # KRB5_KDC_UNREACH


class PasswordRefusal(StrEnum):
    """Why the KDC does not let somebody in: closed set, for the audit record."""

    WRONG = "wrong"  # or no such user; told apart nowhere
    EXPIRED = "expired"  # the password must be changed, or the account has ended
    REVOKED = "revoked"  # disabled, or locked after failures


class PasswordRefused(PopproxyError):
    """The KDC, proven to be ours or not, does not accept user and password."""

    def __init__(self, reason: PasswordRefusal) -> None:
        super().__init__(f"the KDC refuses the password: {reason}")
        self.reason = reason


_REFUSALS: Final = {
    1: PasswordRefusal.EXPIRED,  # KDC_ERR_NAME_EXP
    6: PasswordRefusal.WRONG,  # KDC_ERR_C_PRINCIPAL_UNKNOWN
    9: PasswordRefusal.WRONG,  # KDC_ERR_NULL_KEY
    12: PasswordRefusal.REVOKED,  # KDC_ERR_POLICY: not now, not from here
    18: PasswordRefusal.REVOKED,  # KDC_ERR_CLIENT_REVOKED
    21: PasswordRefusal.REVOKED,  # KDC_ERR_CLIENT_NOTYET
    23: PasswordRefusal.EXPIRED,  # KDC_ERR_KEY_EXPIRED
    24: PasswordRefusal.WRONG,  # KDC_ERR_PREAUTH_FAILED
    31: PasswordRefusal.WRONG,  # KRB_AP_ERR_BAD_INTEGRITY: a KDC without pre-authentication
}


class KdcPassword:
    """Asks the KDC. `principal` is our own, whose key in the keytab proves the KDC.

    Only users of the listed `realms` are asked about: a client that may name any realm could send us to any KDC.
    """

    def __init__(self, keytab: Path, principal: str, realms: Collection[str], *, executor: BoundedExecutor) -> None:
        """Raises ConfigError without a readable keytab: there is no such method then. Unavailable without libkrb5."""
        ServicePrincipals((principal,))
        check_keytab(keytab)
        library()
        self._keytab = keytab
        self._principal = principal
        self._realms = frozenset(realms)
        self._executor = executor

    async def check(self, user: str, password: Secret) -> str:
        """`verify` in a thread of the pool; past its deadline Unavailable, while the thread waits on for the KDC."""
        return await self._executor.run(self.verify, user, password)

    def verify(self, user: str, password: Secret) -> str:
        """The principal that `user` (``alice``, ``alice@REALM``) has proved to be: what is to be mapped to a mailbox.

        Blocks, for half a minute if the KDC is silent.

        Raises PasswordRefused; Unavailable with reason ``kdc`` (no answer, or one that is neither yes nor no) or
        ``kdc_not_proven`` (the KDC is a false one, or the keytab is not up to date).
        """
        octets = password.reveal()
        if not octets or b"\0" in octets or "\0" in user:
            raise PasswordRefused(PasswordRefusal.WRONG)  # C would see only what stands before it
        try:
            context = this_thread()
            with context.principal(user) as client, _creds(context) as creds:
                parts, realm = split_principal(context.text(client))
                if realm not in self._realms or not all(parts):
                    raise PasswordRefused(PasswordRefusal.WRONG)
                _ask(context, creds, client, octets)
                self._prove_kdc(context, creds)
                return context.text(CredsHead.from_buffer(creds).client)
        except Krb5Failure as failure:
            if failure.code - _BASE == _MALFORMED_NAME:
                raise PasswordRefused(PasswordRefusal.WRONG) from None
            raise Unavailable(f"Kerberos cannot check a password just now: {failure}", "kdc") from None
        except UnicodeError:
            raise PasswordRefused(PasswordRefusal.WRONG) from None

    def _prove_kdc(self, context: Context, creds: ctypes.Array[ctypes.c_char]) -> None:
        options = ctypes.create_string_buffer(64)  # krb5_verify_init_creds_opt: two integers
        context.option("krb5_verify_init_creds_opt_init", options)
        context.option("krb5_verify_init_creds_opt_set_ap_req_nofail", options, 1)
        try:
            with context.principal(self._principal) as server, context.keytab(f"FILE:{self._keytab}") as keytab:
                context.call("krb5_verify_init_creds", context.handle, creds, server, keytab, None, options)
        except Krb5Failure as failure:
            if failure.code - _BASE == _KDC_UNREACH:
                raise  # it has gone silent in between, which says nothing against it
            what = f"the KDC could not prove itself with a ticket for {self._principal}: {failure}"
            raise Unavailable(what, KDC_NOT_PROVEN) from None


def _ask(context: Context, creds: ctypes.Array[ctypes.c_char], client: c_void_p, password: bytes) -> None:
    options = c_void_p()
    context.call("krb5_get_init_creds_opt_alloc", context.handle, byref(options))
    try:
        context.option("krb5_get_init_creds_opt_set_tkt_life", options, _LIFETIME)
        context.option("krb5_get_init_creds_opt_set_forwardable", options, 0)
        context.option("krb5_get_init_creds_opt_set_proxiable", options, 0)
        context.option("krb5_get_init_creds_opt_set_change_password_prompt", options, 0)
        context.call(
            "krb5_get_init_creds_password", context.handle, creds, client, password, None, None, 0, None, options
        )
    except Krb5Failure as failure:
        reason = _REFUSALS.get(failure.code - _BASE)
        if reason is None:
            raise
        raise PasswordRefused(reason) from None
    finally:
        context.free("krb5_get_init_creds_opt_free", options)


@contextmanager
def _creds(context: Context) -> Iterator[ctypes.Array[ctypes.c_char]]:
    """Room for a krb5_creds."""
    creds = ctypes.create_string_buffer(CREDS_SIZE)
    try:
        yield creds
    finally:
        context.free("krb5_free_cred_contents", creds)
