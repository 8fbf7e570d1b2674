"""The credentials that kinit has got for a person: for the clients of the demonstration."""

from __future__ import annotations

import gssapi
from gssapi import raw

from popproxy.errors import Unavailable
from popproxy.kerberos.initiator import Initiator
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
