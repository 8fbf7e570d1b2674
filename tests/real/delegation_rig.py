"""A realm that allows constrained delegation, a Dovecot that takes nothing but tickets, and a popproxy in between."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers.certs import CertificateFiles
from tests.peers.dovecot import Dovecot, dovecot
from tests.peers.kdc_ldap import DirectoryRealm, directory_realm
from tests.peers.proxy import Proxy, proxies, settings
from tests.real.kerberos_rig import SERVICE, Site, section

BACKEND = "pop/backend.test"
FORBIDDEN = "pop/forbidden.test"
"""Known to the KDC and to the Dovecot, but not on the proxy's list."""

_GSSAPI = """\
auth_krb5_keytab = {keytab}
auth_gssapi_hostname = "$ALL"
auth_username_chars = abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_@/
import_environment = KRB5_CONFIG={config} KRB5RCACHENAME=none:
"""


@dataclass(frozen=True)
class Grounds:
    """What stays the same for all tests. `tickets` are credential caches."""

    realm: DirectoryRealm
    backend: Dovecot
    tickets: Mapping[str, Path]
    certificate: CertificateFiles
    keytab: Path
    start: Callable[..., Proxy]

    def site(
        self,
        login: Sequence[str],
        *,
        pool: Mapping[str, Any] | None = None,
        kerberos: Mapping[str, Any] | None = None,
        listener: Mapping[str, Any] | None = None,
        vault: Mapping[str, str] | None = None,
        keytab: Path | None = None,
        **sections: Any,
    ) -> Site:
        """A proxy that logs in like this, on a link without TLS and without a layer."""
        link = {
            "servers": [f"127.0.0.1:{self.backend.port}"],
            "allow_cleartext": False,
            "login": list(login),
            "kerberos": {"principal": BACKEND, "layers": ["none"]},
            **(pool or {}),
        }
        complete = settings(
            "",
            self.certificate,
            pool=link,
            listener={"gssapi": True, "authenticate": ["kerberos"], **(listener or {})},
            kerberos={**section(self.realm, keytab=keytab or self.keytab), **(kerberos or {})},
            **sections,
        )
        complete["listeners"].append({"name": "kpop", "listen": ["127.0.0.1:0"], "protocol": "kpop"})
        proxy = self.start(complete, env=self.realm.environment, vault=vault)
        return Site(self.realm, self.backend, proxy, self.tickets)


@contextlib.contextmanager
def gssapi_dovecot(
    it: DirectoryRealm, *services: str, certificate: CertificateFiles | None = None, fields: str = ""
) -> Iterator[Dovecot]:
    """A Dovecot whose only mechanism is GSSAPI, with the keys of `services`."""
    keytab = it.keytab(*services)
    os.chmod(keytab, 0o644)
    extra = _GSSAPI.format(keytab=keytab, config=it.config)
    with dovecot(certificate, mechanisms="gssapi", extra=extra, fields=fields) as server:
        yield server


@contextlib.contextmanager
def grounds(certificate: CertificateFiles) -> Iterator[Grounds]:
    """Everything, for the length of a with statement. Bob must not be delegated."""
    with contextlib.ExitStack() as stack:
        it = stack.enter_context(directory_realm())
        it.user("alice")
        it.user("bob", "-allow_forwardable")
        it.service(SERVICE, BACKEND, FORBIDDEN)
        it.allow_delegation(SERVICE, BACKEND)
        it.allow_transition(SERVICE)
        fields = f"k5principals={SERVICE}@{it.name}"
        backend = stack.enter_context(gssapi_dovecot(it, BACKEND, FORBIDDEN, fields=fields))
        tickets = {user: it.kinit(user) for user in ("alice", "bob")}
        keytab = it.keytab(SERVICE)
        yield Grounds(it, backend, tickets, certificate, keytab, stack.enter_context(proxies()))
