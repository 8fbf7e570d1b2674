"""What a person has got from kinit, for the clients of the demonstration: tickets by GSSAPI, and bare ones for KPOP."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_void_p

import gssapi
from gssapi import raw

from popproxy.errors import Unavailable
from popproxy.kerberos.initiator import Initiator
from popproxy.kerberos.libkrb5 import AP_OPTS_MUTUAL_REQUIRED, Context, Data, Krb5Failure, this_thread
from popproxy.kerberos.service import SERVICE
from popproxy.state.executors import BoundedExecutor


class TicketCache:
    """A source of credentials for an Initiator."""

    def __init__(self, name: str) -> None:
        """`name` is what stands in KRB5CCNAME: ``FILE:/tmp/krb5cc_1000``, or empty for the default."""
        self._name = name

    def context(self, target: str) -> Initiator:
        """A fresh exchange with the service `target` (``pop/host@REALM``); only `step` of it is of use."""
        return Initiator(self, target, None, BoundedExecutor("client", 1, 1, 1.0))

    def acquire(self) -> gssapi.Credentials:
        """See Credentials."""
        store: dict[bytes | str, bytes | str] = {b"ccache": self._name.encode()} if self._name else {}
        try:
            return gssapi.Credentials(
                raw.acquire_cred_from(store, mechs=[gssapi.MechType.kerberos], usage="initiate").creds
            )
        except raw.GSSError:
            raise Unavailable(
                f"there are no tickets in {self._name or 'the default cache'}; get some with kinit", "kdc"
            ) from None

    def failed(self, error: raw.GSSError, target: str) -> Exception:
        """See Credentials."""
        return Unavailable(f"there is no ticket for {target}: {error}", "kdc")


class ApExchange:
    """An AP-REQ without GSSAPI (RFC 4120 section 3.2) that asks for mutual authentication. Made by `ap_exchange`."""

    def __init__(self, context: Context, auth_context: c_void_p, request: bytes) -> None:
        self._context = context
        self._auth_context = auth_context
        self.request = request  # in DER

    def prove(self, reply: bytes) -> None:
        """Take the service's AP-REP. Raises Unavailable if it is not the one that the ticket is for."""
        buffer, part = ctypes.create_string_buffer(reply, len(reply)), c_void_p()
        data = Data(0, len(reply), ctypes.addressof(buffer))
        try:
            self._context.call("krb5_rd_rep", self._context.handle, self._auth_context, byref(data), byref(part))
        except Krb5Failure as failure:
            raise Unavailable(f"the service cannot prove itself: {failure}", "kdc") from None
        self._context.free("krb5_free_ap_rep_enc_part", part)


@contextmanager
def ap_exchange(name: str, host: str) -> Iterator[ApExchange]:
    """An exchange with the POP3 service of `host`; `name` as in TicketCache. May ask the KDC. Raises Unavailable."""
    context = this_thread()
    cache, auth_context, out = c_void_p(), c_void_p(), Data()
    try:
        if name:
            context.call("krb5_cc_resolve", context.handle, name.encode(), byref(cache))
        else:
            context.call("krb5_cc_default", context.handle, byref(cache))
        try:
            context.call(
                "krb5_mk_req", context.handle, byref(auth_context), AP_OPTS_MUTUAL_REQUIRED, SERVICE.encode(),
                host.encode(), None, cache, byref(out),
            )  # fmt: skip
        finally:
            context.call("krb5_cc_close", context.handle, cache)
    except Krb5Failure as failure:
        what = f"there is no ticket for {SERVICE}/{host} in {name or 'the default cache'}; get some with kinit"
        raise Unavailable(f"{what} ({failure})", "kdc") from None
    try:
        yield ApExchange(context, auth_context, context.take(out))
    finally:
        context.free("krb5_auth_con_free", auth_context)
