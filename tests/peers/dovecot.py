"""A real Dovecot with a Maildir for each user: the backend that can do everything."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests.peers.canaries import canary
from tests.peers.certs import CertificateFiles
from tests.peers.process import Process, accepts, free_port, public_directory, require, signal_all, wait_until

INTROSPECTION = """\
introspection_mode = post
introspection_url = {url}/introspect
tls_ca_cert_file = {ca}
username_attribute = username
username_format = %u
active_attribute = active
active_value = true
"""
"""How it asks an issuer whose a token is."""

_CONFIGURATION = """\
base_dir = {directory}/run
state_dir = {directory}/state
log_path = {directory}/dovecot.log
instance_name = popproxy-test-{port}
protocols = pop3
listen = 127.0.0.1
default_login_user = {login_user}
default_internal_user = {internal_user}
default_internal_group = {internal_group}
disable_plaintext_auth = no
auth_mechanisms = {mechanisms}
auth_failure_delay = 0
auth_verbose = yes
first_valid_uid = {uid}
mail_location = maildir:{directory}/mail/%u
mail_max_userip_connections = 0
pop3_no_flag_updates = yes
pop3_uidl_format = %08Xu%08Xv
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {directory}/users
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={directory}/mail/%u
}}
service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  chroot =
}}
service pop3-login {{
  chroot =
  inet_listener pop3 {{
    port = {port}
  }}
  inet_listener pop3s {{
    port = {tls_port}
    ssl = {implicit}
  }}
}}
{tls}
{extra}
"""


class Dovecot:
    """Listens on `port` (STLS if it has a certificate) and `tls_port`. `users` maps names to passwords.

    `fields` are what the password database knows of each user beside the password.
    """

    def __init__(
        self,
        directory: Path,
        users: Iterable[str] = ("alice", "bob"),
        certificate: CertificateFiles | None = None,
        *,
        mechanisms: str = "plain login",
        extra: str = "",
        fields: str = "",
    ) -> None:
        self.directory = directory
        self.users: dict[str, str] = {user: canary(user) for user in users}
        self.port = free_port()
        self.tls_port = free_port() if certificate else 0
        self._owner = _mail_owner()
        lines = [f"{user}:{{PLAIN}}{secret}::::::{fields}\n" for user, secret in self.users.items()]
        (directory / "users").write_text("".join(lines))
        (directory / "mail").mkdir()
        for user in self.users:
            self.deliver(user, [])
        configuration = directory / "dovecot.conf"
        root = os.geteuid() == 0
        me = pwd.getpwuid(os.geteuid()).pw_name
        configuration.write_text(
            _CONFIGURATION.format(
                directory=directory,
                port=self.port,
                tls_port=self.tls_port,
                implicit="yes" if certificate else "no",
                login_user="dovenull" if root else me,
                internal_user="dovecot" if root else me,
                internal_group="dovecot" if root else str(os.getegid()),
                mechanisms=mechanisms,
                uid=self._owner[0],
                gid=self._owner[1],
                tls=_tls(certificate),
                extra=extra,
            )
        )
        self.start()

    def start(self) -> None:
        """Again, after `stop`."""
        command: list[str | Path] = [require("dovecot"), "-F", "-c", self.directory / "dovecot.conf"]
        self._process = Process("dovecot", command, self.directory / "dovecot.log", self.directory)
        self._process.wait_for(lambda: accepts(self.port), "Dovecot's greeting")

    def deliver(self, user: str, messages: Iterable[bytes]) -> None:
        """Replaces the user's maildrop by `messages`, byte for byte."""
        maildir, workshop = self.directory / "mail" / user, Path(tempfile.mkdtemp(dir=self.directory))
        fresh = workshop / "fresh"
        for part in ("new", "tmp", "cur"):
            (fresh / part).mkdir(parents=True)
        for number, message in enumerate(messages, 1):
            (fresh / "cur" / f"{1_700_000_000 + number}.M{number}.test:2,").write_bytes(message)
        for path in (fresh, *fresh.rglob("*")):
            os.chown(path, *self._owner)
        # Moved as a whole: the session before may still be writing into what it had.
        if maildir.exists():
            maildir.rename(workshop / "old")
        fresh.rename(maildir)
        shutil.rmtree(workshop, ignore_errors=True)

    def maildrop(self, user: str) -> list[bytes]:
        """The messages that are still there, in the order of delivery."""
        maildir = self.directory / "mail" / user
        files = [*(maildir / "cur").iterdir(), *(maildir / "new").iterdir()]
        return [path.read_bytes() for path in sorted(files, key=lambda path: int(path.name.split(".")[0]))]

    def log(self) -> str:
        """What it has said."""
        return (self.directory / "dovecot.log").read_text(errors="replace")

    def told(self, *words: str) -> str:
        """The first line of the log with all of `words`; waits for it, as another process writes the log."""

        def found() -> list[str]:
            return [line for line in self.log().splitlines() if all(word in line for word in words)]

        wait_until(lambda: bool(found()), f"a line with {words} in Dovecot's log")
        return found()[0]

    def freeze(self) -> None:
        """It takes connections, and says nothing, until `thaw`."""
        signal_all(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """After `freeze`."""
        signal_all(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Ends the master process, and with it all others."""
        self._process.stop()


def _mail_owner() -> tuple[int, int]:
    """Dovecot refuses to open mail as root."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _tls(certificate: CertificateFiles | None) -> str:
    if certificate is None:
        return "ssl = no"
    return f"ssl = yes\nssl_min_protocol = TLSv1.2\nssl_cert = <{certificate.cert}\nssl_key = <{certificate.key}"


@contextlib.contextmanager
def dovecot(
    certificate: CertificateFiles | None = None,
    users: Mapping[str, str] | Iterable[str] = ("alice", "bob"),
    mechanisms: str = "plain login",
    extra: str = "",
    fields: str = "",
) -> Iterator[Dovecot]:
    """A Dovecot for the length of a with statement."""
    with public_directory("dovecot") as directory:
        server = Dovecot(directory, users, certificate, mechanisms=mechanisms, extra=extra, fields=fields)
        try:
            yield server
        finally:
            server.stop()
