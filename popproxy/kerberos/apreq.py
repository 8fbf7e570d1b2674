"""Verifies an AP-REQ without GSSAPI around it (RFC 4120 section 3.2), as KPOP's sendauth brings it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, byref, c_int32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from popproxy.errors import Unavailable
from popproxy.kerberos.libkrb5 import (
    AP_OPTS_MUTUAL_REQUIRED,
    AuthenticatorHead,
    Context,
    Data,
    Error,
    Krb5Failure,
    Ticket,
    enctype_name,
    library,
    this_thread,
)
from popproxy.kerberos.refusal import GENERIC, MAX_TOKEN, WIRE_CODES, KerberosRefused, Refusal, reason_of, wire_code
from popproxy.kerberos.service import SERVICE, ReplayCache, ServicePrincipals, check_keytab, diagnose
from popproxy.state.executors import BoundedExecutor

_TEXT: Final = b"authentication failed"
"""e-text of a KRB-ERROR: the library's own names principals and key versions."""
_GSSAPI_CHECKSUM: Final = 0x8003
"""The checksum in the authenticator of a GSSAPI token, which holds the channel bindings (RFC 4121 section 4.1.1)."""


@dataclass(frozen=True, slots=True)
class ApReqAccepted:
    """Who it is. `endtime` of the ticket in seconds since 1970; `mutual_reply` is the AP-REP if one was asked for."""

    client: str
    server: str
    mutual_reply: bytes | None
    enctype: str
    endtime: int


class ApReqVerifier:
    """Judges AP-REQs for a listener. Nothing binds one to its connection: the replay cache is all there is."""

    def __init__(
        self,
        keytab: Path,
        principals: Sequence[str],
        *,
        rcache_dir: Path,
        executor: BoundedExecutor,
        max_token: int = MAX_TOKEN,
    ) -> None:
        """Raises ConfigError for an unusable keytab or replay cache; Unavailable without MIT's libkrb5."""
        self.principals = ServicePrincipals(tuple(principals))
        self.replay_cache = ReplayCache(rcache_dir)
        self.keytab = keytab
        self._executor = executor
        self._max_token = max_token
        check_keytab(keytab)
        library()

    async def check(self, ap_req: bytes) -> ApReqAccepted:
        """`verify` in a thread of the pool. Raises Unavailable, too."""
        return await self._executor.run(self.verify, ap_req)

    async def refused(self, reason: Refusal, *, temporary: bool) -> KerberosRefused:
        """What `check` would raise: somebody else has judged. Raises Unavailable."""
        return await self._executor.run(self._refused, reason, temporary)

    def _refused(self, reason: Refusal, temporary: bool) -> KerberosRefused:
        try:
            token = self._krb_error(this_thread(), WIRE_CODES.get(reason, GENERIC))
        except Krb5Failure:
            token = None
        return KerberosRefused(reason, temporary=temporary, token=token)

    def verify(self, ap_req: bytes) -> ApReqAccepted:
        """Judge an AP-REQ (DER). Blocks. Raises KerberosRefused, whose `token` is the KRB-ERROR for the client."""
        try:
            context = this_thread()
        except (Krb5Failure, Unavailable):
            raise KerberosRefused(Refusal.UNAVAILABLE, temporary=True) from None
        try:
            if not ap_req or len(ap_req) > self._max_token:
                raise KerberosRefused(Refusal.GARBAGE)
            return self._verify(context, ap_req)
        except Krb5Failure as failure:
            reason, ours = diagnose(reason_of(failure.code), self.keytab, self.replay_cache)
            code = wire_code(failure.code)
        except KerberosRefused as refused:
            reason, ours = refused.reason, refused.temporary
            code = WIRE_CODES.get(reason, GENERIC)
        raise KerberosRefused(reason, temporary=ours, token=self._krb_error(context, code))

    def _verify(self, context: Context, ap_req: bytes) -> ApReqAccepted:
        with (
            self._auth_context(context) as auth_context,
            context.keytab(f"FILE:{self.keytab}") as keytab,
        ):
            buffer = ctypes.create_string_buffer(ap_req, len(ap_req))
            message = Data(0, len(ap_req), ctypes.addressof(buffer))
            options = c_int32()
            ticket = POINTER(Ticket)()
            context.call(
                "krb5_rd_req",
                context.handle,
                byref(auth_context),
                byref(message),
                # The keys of every such principal are tried, and no others: where host/ and pop/ have one key, it would
                # report host/ otherwise.
                context.any_host(SERVICE),
                keytab,
                byref(options),
                byref(ticket),
            )
            try:
                return self._accept(context, auth_context, ticket.contents, options.value)
            finally:
                context.free("krb5_free_ticket", ticket)

    def _accept(self, context: Context, auth_context: c_void_p, ticket: Ticket, options: int) -> ApReqAccepted:
        inner = ticket.enc_part2.contents
        try:
            client, server = context.text(inner.client), context.text(ticket.server)
        except UnicodeDecodeError:
            raise KerberosRefused(Refusal.GARBAGE) from None
        refusal = self.principals.refuse(server)
        if refusal is not None:
            raise KerberosRefused(refusal)
        if _made_for_gssapi(context, auth_context):
            # Whoever sits between a GSSAPI client and us could bring its token here, where no channel is bound.
            raise KerberosRefused(Refusal.GARBAGE)
        reply: bytes | None = None
        if options & AP_OPTS_MUTUAL_REQUIRED:
            data = Data()
            context.call("krb5_mk_rep", context.handle, auth_context, byref(data))
            reply = context.take(data)
        return ApReqAccepted(client, server, reply, enctype_name(ticket.enc_part.enctype), inner.times.endtime)

    @contextmanager
    def _auth_context(self, context: Context) -> Iterator[c_void_p]:
        """A krb5_auth_context that uses our replay cache. No addresses: clients come through NAT and proxies."""
        auth_context, cache = c_void_p(), c_void_p()
        context.call("krb5_auth_con_init", context.handle, byref(auth_context))
        try:
            context.call("k5_rc_resolve", context.handle, self.replay_cache.name.encode(), byref(cache))
            context.call("krb5_auth_con_setrcache", context.handle, auth_context, cache)  # which closes it, too
            yield auth_context
        finally:
            context.free("krb5_auth_con_free", auth_context)

    def _krb_error(self, context: Context, code: int) -> bytes | None:
        """A KRB-ERROR (RFC 4120 section 5.9.1) in the name of our first principal."""
        text = ctypes.create_string_buffer(_TEXT, len(_TEXT))
        error, data = Error(), Data()
        error.error = code
        error.text = Data(0, len(_TEXT), ctypes.addressof(text))
        seconds, microseconds = c_int32(), c_int32()
        try:
            context.call("krb5_us_timeofday", context.handle, byref(seconds), byref(microseconds))
            error.stime, error.susec = seconds.value, microseconds.value
            with context.principal(self.principals.names[0]) as server:
                error.server = server.value
                context.call("krb5_mk_error", context.handle, byref(error), byref(data))
        except Krb5Failure:
            return None
        return context.take(data)


def _made_for_gssapi(context: Context, auth_context: c_void_p) -> bool:
    authenticator = POINTER(AuthenticatorHead)()
    context.call("krb5_auth_con_getauthenticator", context.handle, auth_context, byref(authenticator))
    try:
        checksum = authenticator.contents.checksum
        return bool(checksum) and checksum.contents.checksum_type == _GSSAPI_CHECKSUM
    finally:
        context.free("krb5_free_authenticator", authenticator)
