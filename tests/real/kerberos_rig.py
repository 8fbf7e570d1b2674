"""A realm, a Dovecot that only knows passwords, and a popproxy in between; and mail clients that have tickets."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.peers.canaries import canary
from tests.peers.certs import CertificateFiles
from tests.peers.dovecot import Dovecot, dovecot
from tests.peers.kdc import Realm, realm
from tests.peers.process import public_directory, require
from tests.peers.proxy import Proxy, proxies, settings

SERVICE = "pop/localhost"
OTHER_SERVICES = ("imap/localhost", "host/localhost", "ftp/localhost", "pop/elsewhere.test")
"""Their keys are in the proxy's keytab, too."""
ROOT = Path(__file__).parents[2]
POP3TEST = ROOT / ".venv/peers/cyrus/usr/lib/cyrus/bin/pop3test"
MASTER = "popproxy"
MESSAGE = b"Subject: tickets\n\nNo password anywhere.\n"

_MASTERS = """\
auth_master_user_separator = *
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {file}
  master = yes
}}
"""


@dataclass(frozen=True)
class Site:
    """Everything that runs."""

    realm: Realm
    backend: Dovecot
    proxy: Proxy
    tickets: Mapping[str, Path]

    @property
    def service(self) -> str:
        """The proxy's principal."""
        return f"{SERVICE}@{self.realm.name}"

    def environment(self, user: str, directory: Path) -> dict[str, str]:
        """For a program that has the tickets of `user`."""
        return {
            **self.realm.environment,
            "KRB5CCNAME": f"FILE:{self.tickets[user]}",
            "HOME": str(directory),
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "TERM": "dumb",
        }

    def run(
        self, command: list[str | Path], directory: Path, user: str = "alice", text: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program with the user's tickets to its end."""
        return subprocess.run(
            command, cwd=directory, env={**self.environment(user, directory), **more}, input=text, timeout=60,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", check=False,
        )  # fmt: skip


def give_to_service(*paths: Path) -> None:
    """Popproxy, started by root, runs as nobody."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in paths:
            os.chown(path, nobody.pw_uid, nobody.pw_gid)


def section(it: Realm, *, keytab: Path | None = None, **more: Any) -> dict[str, Any]:
    """The section kerberos for a realm that has our service."""
    keytab = keytab or it.keytab(SERVICE)
    cache = it.directory / "replay"
    cache.mkdir(mode=0o700, exist_ok=True)
    give_to_service(keytab, cache)
    return {
        "keytab": str(keytab),
        "principals": [f"{SERVICE}@{it.name}"],
        "replay_cache": str(cache),
        "realms": [{"realm": it.name}],
        "layers": ["none", "integrity", "confidentiality"],
        **more,
    }


def configuration(
    it: Realm, backend: Dovecot, certificate: CertificateFiles, directory: Path, *, password: str, **kerberos: Any
) -> dict[str, Any]:
    """Listeners pop3 and pop3s take tickets and Kerberos passwords, kpop takes KPOP; the pool has a master user."""
    secret = directory / "master.password"
    secret.write_text(password)
    secret.chmod(0o600)
    pool = {"login": ["master"], "master": {"user": MASTER, "password": {"file": str(secret)}}}
    complete = settings(
        f"127.0.0.1:{backend.port}",
        certificate,
        pool=pool,
        listener={"gssapi": True, "authenticate": ["kerberos"]},
        kerberos=section(it, **kerberos),
        penalties={"allow": ["127.0.0.0/8"]},  # many logins of one user at once are no guesses here
    )
    complete["listeners"].append({"name": "kpop", "listen": ["127.0.0.1:0"], "protocol": "kpop"})
    return complete


@contextlib.contextmanager
def master_dovecot() -> Iterator[tuple[Dovecot, str]]:
    """A Dovecot with users alice and bob and a master user; and the master user's password."""
    with public_directory("masters") as directory:
        password = canary("master")
        masters = directory / "masters"
        masters.write_text(f"{MASTER}:{{PLAIN}}{password}\n")
        with dovecot(extra=_MASTERS.format(file=masters)) as server:
            yield server, password


@contextlib.contextmanager
def site(certificate: CertificateFiles) -> Iterator[Site]:
    """Everything, for the length of a with statement."""
    with contextlib.ExitStack() as stack:
        it = stack.enter_context(realm())
        tickets = {}
        for user in ("alice", "bob", "alice/admin"):
            it.user(user)
            tickets[user] = it.kinit(user)
        it.service(SERVICE, *OTHER_SERVICES)
        it.kvno(tickets["alice"], SERVICE, *OTHER_SERVICES)
        backend, password = stack.enter_context(master_dovecot())
        directory = stack.enter_context(public_directory("secrets"))
        start = stack.enter_context(proxies())
        keytab = it.keytab(*OTHER_SERVICES, SERVICE)
        complete = configuration(it, backend, certificate, directory, password=password, keytab=keytab, deadline="3s")
        yield Site(it, backend, start(complete, env=it.environment), tickets)


def pop3test(site: Site, directory: Path, layer: int, commands: str) -> str:
    """What Cyrus's client prints in a session inside security layer 1, 2 or 4."""
    assert POP3TEST.exists(), "pop3test is missing, run: make setup"
    strength = {1: "0", 2: "1", 4: "256"}[layer]
    libraries = [path.parent for path in (ROOT / ".venv/peers/cyrus").rglob("*.so.*")]
    command: list[str | Path] = [
        POP3TEST, "-p", str(site.proxy.port()), "-m", "GSSAPI", "-u", "alice", "-a", "alice", "-l", strength,
        "localhost",
    ]  # fmt: skip
    if layer == 4:
        command[1:1] = ["-k", "256"]
    done = site.run(command, directory, text=commands, LD_LIBRARY_PATH=":".join(sorted(set(map(str, libraries)))))
    return done.stdout


def fetchmail(
    site: Site, directory: Path, server: str, user: str = "alice", *, options: str = ""
) -> tuple[int, str, list[bytes]]:
    """Exit status, output and messages of fetchmail; `server` and `options` are those of its file."""
    inbox, agent, control = directory / "inbox", directory / "deliver", directory / "fetchmailrc"
    inbox.mkdir()
    agent.write_text(f'#!/bin/sh\nexec cat >"$(mktemp {inbox}/XXXXXXXX)"\n')
    agent.chmod(0o755)
    control.touch(mode=0o600)
    control.write_text(
        f"set invisible\n{server}\n  user {user} there password krb is here {options} keep fetchall\n  mda {agent}\n"
    )
    done = site.run([require("fetchmail"), "-v", "-N", "--nosyslog", "-f", control], directory, user)
    return done.returncode, done.stdout, [path.read_bytes() for path in inbox.iterdir()]


def curl(
    site: Site, directory: Path, *options: str, user: str = "alice", listener: str = "pop3", **more: str
) -> tuple[int, str]:
    """Exit status and output of a curl that fetches the first message; `more` goes into its environment."""
    scheme = "pop3s" if listener == "pop3s" else "pop3"
    url = f"{scheme}://localhost:{site.proxy.port(listener)}/1"
    command: list[str | Path] = [require("curl"), "-sS", "--login-options", "AUTH=GSSAPI", "--user", ":", *options, url]
    done = site.run(command, directory, user, **more)
    return done.returncode, done.stdout


def perl_kpop(site: Site, directory: Path, how: str = "mutual", **more: str) -> tuple[int, str]:
    """Exit status and output of the client in Perl, which takes the first message away."""
    command: list[str | Path] = [
        require("perl"), ROOT / "tests/peers/kpop_client.pl", str(site.proxy.port("kpop")), "alice", how,
    ]  # fmt: skip
    done = site.run(command, directory, **more)
    return done.returncode, done.stdout
