"""What the demo needs on disk, in one temporary directory: maildrops, certificates, users, vault, configuration."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from popproxy.auth.hashes import hash_password
from popproxy.config.model_abuse import MAX_SOCKET_PATH
from popproxy.demo.backend import Account
from popproxy.demo.certificates import issue, make_authority, write_private
from popproxy.demo.kdc import REALM, ThrowAwayRealm
from popproxy.types import Address, Secret
from popproxy.vault.format import generate_key
from popproxy.vault.store import Vault

SAMPLE = Path(__file__).with_name("maildir")
"""The sample maildrop: a Maildir whose messages are copied, never touched."""

LOCAL_USER = "alice"
"""Checked by the proxy against the users file; logs in at the backend with a secret from the vault. May use APOP."""
PASSED_USER = "bob"
"""Unknown to the proxy: the backend decides (pass-through)."""

_CONFIGURATION = """\
# The configuration that this demo runs with. See also: popproxy config show --changed -c {path}
listeners:
  - name: pop3
    listen: ["127.0.0.1:{pop3}"]
    tls: stls
    apop: true
    gssapi: {gssapi}
    authenticate: [users, passthrough]
  - name: pop3s
    listen: ["127.0.0.1:{pop3s}"]
    tls: implicit
    gssapi: {gssapi}
    authenticate: [users, passthrough]
{kpop_listener}tls:
  certificates:
    - {{cert: {directory}/server.pem, key: {directory}/server.key}}
users:
  file: {directory}/users
vault:
  file: {directory}/vault
  key: {{file: {directory}/vault.key}}
{kerberos}authentication:
  failure_delay: {failure_delay}
pools:
  demo:
    servers: ["{backend}"]
    tls: none
    allow_cleartext: true # the backend is in this very process, on the loopback interface
    login: [stored, forward]
    capabilities: [TOP, UIDL]
audit:
  file: {directory}/audit.jsonl
logging:
  level: error
http:
  listen: "127.0.0.1:{http}"
control:
  socket: {directory}/control.sock
"""

_KPOP_LISTENER = """\
  - name: kpop
    protocol: kpop
    listen: ["127.0.0.1:{kpop}"]
"""
_KERBEROS = """\
kerberos:
  keytab: {keytab}
  principals: [{principal}]
  replay_cache: {directory}/replay
  realms: [{{realm: {realm}}}]
"""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the demo listens; 0 takes a free port."""

    pop3: int = 1110
    pop3s: int = 1995
    http: int = 9110
    kpop: int = 1109


@dataclass(frozen=True, slots=True)
class DemoUser:
    """A user of the demo and the Maildir behind."""

    name: str
    password: Secret
    maildir: Path


@dataclass(frozen=True, slots=True)
class Realm:
    """The demo's directory and who lives in it."""

    directory: Path
    users: dict[str, DemoUser]

    @property
    def ca(self) -> Path:
        """The certificate that clients are told to trust."""
        return self.directory / "ca.pem"

    @property
    def config(self) -> Path:
        """The proxy's configuration file."""
        return self.directory / "popproxy.yaml"

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self.directory / "audit.jsonl"

    def accounts(self) -> dict[str, Account]:
        """What the backend knows."""
        return {user.name: Account(user.password, user.maildir) for user in self.users.values()}

    def configure(
        self, backend: Address, ports: Ports, failure_delay: str = "2s", tickets: ThrowAwayRealm | None = None
    ) -> None:
        """Write the configuration for a backend at `backend`, with tickets of that realm if any. Raises OSError."""
        kpop_listener = kerberos = ""
        if tickets is not None:
            (self.directory / "replay").mkdir(mode=0o700)
            kpop_listener = _KPOP_LISTENER.format(kpop=ports.kpop)
            kerberos = _KERBEROS.format(
                keytab=tickets.keytab, principal=tickets.principal, directory=self.directory, realm=REALM
            )
        text = _CONFIGURATION.format(
            gssapi="false" if tickets is None else "true",
            kpop_listener=kpop_listener,
            kerberos=kerberos,
            path=self.config,
            directory=self.directory,
            backend=backend,
            pop3=ports.pop3,
            pop3s=ports.pop3s,
            http=ports.http,
            failure_delay=failure_delay,
        )
        self.config.write_text(text)

    def bring_up_tickets(self) -> ThrowAwayRealm:
        """A KDC that knows the proxy's service, and a ticket for the local user. Raises Unavailable, OSError."""
        directory = self.directory / "kerberos"
        directory.mkdir(mode=0o700)
        return ThrowAwayRealm(directory, [LOCAL_USER])

    def remove(self) -> None:
        """Delete the directory with everything in it."""
        shutil.rmtree(self.directory, ignore_errors=True)


def make_realm() -> Realm:
    """A fresh realm with new passwords and keys, readable by its owner only. Raises OSError."""
    directory = Path(tempfile.mkdtemp(prefix="popproxy-demo-", dir=_room()))
    users = {name: _make_user(directory, name) for name in (LOCAL_USER, PASSED_USER)}
    _write_certificates(directory)
    local = users[LOCAL_USER]
    write_private(directory / "users", f"{local.name}:{hash_password(local.password.reveal())}\n".encode())
    _write_vault(directory, local)
    return Realm(directory, users)


def _room() -> str | None:
    """Where temporary files go, unless the name of a Unix socket in there would be too long."""
    room = os.fsencode(tempfile.gettempdir())
    return None if len(room) + len("/popproxy-demo-12345678/control.sock") <= MAX_SOCKET_PATH else "/tmp"  # noqa: S108


def _make_user(directory: Path, name: str) -> DemoUser:
    maildir = directory / "maildrops" / name
    shutil.copytree(SAMPLE, maildir)
    for folder in ("new", "cur", "tmp"):
        (maildir / folder).mkdir(exist_ok=True)
    for path in maildir.glob("*/*"):
        os.chmod(path, 0o600)  # the package may be installed read-only
    return DemoUser(name, Secret(f"demo-{secrets.token_hex(4)}"), maildir)


def _write_certificates(directory: Path) -> None:
    authority = make_authority()
    server = issue(authority, ["localhost", "127.0.0.1", "::1"])
    (directory / "ca.pem").write_bytes(authority.certificate_pem())
    (directory / "server.pem").write_bytes(server.certificate_pem())
    write_private(directory / "server.key", server.key_pem())


def _write_vault(directory: Path, user: DemoUser) -> None:
    key = Secret(generate_key())
    write_private(directory / "vault.key", key.reveal() + b"\n")
    vault = Vault.create(directory / "vault", key)
    vault.set(user.name, user.password)
