"""A realm that allows constrained delegation, a Dovecot that takes nothing but tickets, and a popproxy in between."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.peers.certs import CertificateFiles
from tests.peers.dovecot import Dovecot, dovecot
from tests.peers.kdc_ldap import DirectoryRealm, directory_realm
from tests.peers.process import require, wait_until
from tests.peers.proxy import Record, StartProxy, settings
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
    start: StartProxy

    def site(
        self,
        login: Sequence[str],
        *,
        pool: Mapping[str, Any] | None = None,
        kerberos: Mapping[str, Any] | None = None,
        listener: Mapping[str, Any] | None = None,
        vault: Mapping[str, str] | None = None,
        keytab: Path | None = None,
        users: Path | None = None,
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
            **({} if users is None else {"users": {"file": str(users)}}),
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
def grounds(certificate: CertificateFiles) -> Iterator[Callable[[StartProxy], Grounds]]:
    """Everything but the proxies, for the length of a with statement. Bob must not be delegated."""
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
        yield partial(Grounds, it, backend, tickets, certificate, keytab)


# ---- clients with tickets, and what came of them ----


def curl(it: Site, home: Path, *options: str, user: str = "alice", path: str = "/1") -> tuple[int, str]:
    command: list[str | Path] = [
        require("curl"), "-sS", "--login-options", "AUTH=GSSAPI", "--user", ":", *options,
        f"pop3://localhost:{it.proxy.port()}{path}",
    ]  # fmt: skip
    done = it.run(command, home, user)
    return done.returncode, done.stdout


def login_record(it: Site) -> Record:
    """Of the session that ended last."""
    it.proxy.settled()
    (record,) = [record for record in it.proxy.sessions()[-1] if record["event.action"] == "login"]
    return record


def _at_backend(it: Site) -> str:
    """Whom the Dovecot has let in last, and how."""
    lines = [line for line in (it.backend.directory / "dovecot.log").read_text().splitlines() if "Login: user" in line]
    return lines[-1].partition("Login: ")[2].partition(", rip")[0] if lines else ""


def let_in_by_backend(it: Site, expected: str) -> None:
    """Waits until it was this one, in this way: another process writes that log."""
    wait_until(lambda: _at_backend(it) == expected, f"a login at the backend with {expected}")


def refusal(it: Site, home: Path, *options: str, user: str = "alice") -> str:
    """What a client with a ticket is told, by curl."""
    status, output = curl(it, home, "-v", *options, user=user)
    assert status != 0, output
    answers = [line[2:] for line in output.splitlines() if line.startswith("< -ERR")]
    assert len(answers) == 1, output + it.proxy.log()
    return answers[0]


def failure(it: Site) -> Record:
    """The record of the login that has failed last at the backend."""
    wait_until(lambda: bool(it.proxy.audit("backend_login")), "the record of a failed login")
    return it.proxy.audit("backend_login")[-1]
