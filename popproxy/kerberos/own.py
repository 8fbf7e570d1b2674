"""The proxy's own credentials at the KDC, from its keytab: a ticket-granting ticket that is renewed in time."""

from __future__ import annotations

import itertools
import os
import threading
import time
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Final

import gssapi
from gssapi import raw

from popproxy.errors import PopproxyError
from popproxy.kerberos.delegation_failure import number_of, own_failed
from popproxy.kerberos.libkrb5 import this_thread

_AGAIN: Final = 30.0
"""Seconds between attempts to renew a ticket that is still good."""
_numbers = itertools.count(1)


class Own:
    """One ticket, able to initiate and to accept. Its cache is in memory and goes when the last user of it goes.

    `credentials` may be used by many threads at a time; the library locks them.
    """

    def __init__(self, keytab: Path, principal: str) -> None:
        """Asks the KDC. Raises raw.GSSError."""
        self._cache = f"MEMORY:popproxy-{os.getpid()}-{next(_numbers)}".encode()
        store: dict[bytes | str, bytes | str] = {}
        store[b"keytab"] = store[b"client_keytab"] = f"FILE:{keytab}".encode()
        store[b"ccache"] = self._cache
        store[b"rcache"] = b"none:"  # whatever this accepts has passed the replay cache before
        name = raw.import_name(principal.encode(), gssapi.NameType.kerberos_principal)
        acquired = raw.acquire_cred_from(store, name=name, mechs=[gssapi.MechType.kerberos], usage="both")
        self.principal = principal
        self.credentials = gssapi.Credentials(acquired.creds)
        lifetime = float(self.credentials.lifetime or 0)  # it is now that the library asks the KDC
        now = time.monotonic()
        self.renew_at = now + lifetime / 2
        self.ends_at = now + lifetime

    def __del__(self) -> None:
        self.__dict__.pop("credentials", None)
        cache = c_void_p()
        try:
            context = this_thread()
            context.call("krb5_cc_resolve", context.handle, self._cache, byref(cache))
            context.call("krb5_cc_destroy", context.handle, cache)
        except PopproxyError:
            pass  # it was never made


class OwnCredentials:
    """Tickets of the principals in a keytab, each renewed after half of its life. For many threads."""

    def __init__(self, keytab: Path) -> None:
        self._keytab = keytab
        self._lock = threading.Lock()
        self._held: dict[str, Own] = {}

    def get(self, principal: str, strategy: str) -> Own:
        """A ticket for `principal` (``pop/host@REALM``). Asks the KDC if need be, and blocks then.

        Raises DelegationFailed, naming `strategy`.
        """
        now = time.monotonic()
        with self._lock:
            held = self._held.get(principal)
            if held is not None and now < held.ends_at:
                if now < held.renew_at:
                    return held
                held.renew_at = now + _AGAIN  # one thread asks; the others, and this one in vain, use what there is
        try:
            own = Own(self._keytab, principal)
        except raw.GSSError as error:
            if held is not None and now < held.ends_at:
                return held
            raise own_failed(number_of(error.min_code), strategy, principal) from None
        with self._lock:
            self._held[principal] = own
        return own

    def forget(self, principal: str) -> None:
        """The tickets in its cache are of no use any more: a backend has refused one."""
        with self._lock:
            self._held.pop(principal, None)
