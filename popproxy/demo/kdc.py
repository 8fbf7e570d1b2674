"""A Kerberos realm that lives as long as the demo: its own KDC on loopback, its database and tickets in one directory.

Nothing of the machine's Kerberos is read or changed. Whoever is to live in the realm gets `environment`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from popproxy.app.kerberos import INSTALL, libraries_missing
from popproxy.errors import Unavailable

REALM: Final = "POPPROXY.DEMO"
SERVICE: Final = "pop/localhost"

_PACKAGES: Final = {
    "krb5kdc": "krb5-kdc", "kdb5_util": "krb5-kdc", "kadmin.local": "krb5-admin-server", "kinit": "krb5-user",
}  # fmt: skip
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"
_SECONDS: Final = 20.0
"""Longest time for one program, and for the KDC to begin."""
_LAST_WORDS: Final = 5.0

_KRB5_CONF: Final = """\
[libdefaults]
    default_realm = {realm}
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
[realms]
    {realm} = {{
        kdc = 127.0.0.1:{port}
    }}
[domain_realm]
    localhost = {realm}
"""
_KDC_CONF: Final = """\
[realms]
    {realm} = {{
        database_name = {directory}/principal
        key_stash_file = {directory}/stash
        acl_file = {directory}/kadm5.acl
        kdc_listen = 127.0.0.1:{port}
        kdc_tcp_listen = 127.0.0.1:{port}
        max_life = 1d
        supported_enctypes = aes256-cts:normal
    }}
[logging]
    default = FILE:{directory}/kdc.log
"""


def missing() -> str | None:
    """What a realm would need and is not installed, with what installs it; None if everything is there."""
    packages = dict.fromkeys(package for program, package in _PACKAGES.items() if _find(program) is None)
    if packages:
        names = " ".join(packages)
        return f"there is no KDC on this machine; install it with make demo, or with apt-get install {names}"
    why = libraries_missing()
    return None if why is None else f"its libraries are not installed ({why}); {INSTALL}"


class ThrowAwayRealm:
    """A running KDC that knows our service and some users; `tickets` holds the credential cache of each user."""

    def __init__(self, directory: Path, users: Sequence[str]) -> None:
        """Make and start it, in a second or two; `directory` must be private and empty. Raises Unavailable."""
        self.directory = directory
        self.config = directory / "krb5.conf"
        self.keytab = directory / "pop.keytab"
        self.tickets = {user: directory / f"tickets-{user}" for user in users}
        self._kdc: subprocess.Popen[bytes] | None = None
        port = _free_port()
        values = {"realm": REALM, "directory": directory, "port": port}
        self.config.write_text(_KRB5_CONF.format(**values))
        (directory / "kdc.conf").write_text(_KDC_CONF.format(**values))
        try:
            master = secrets.token_hex(16)
            self._run("kdb5_util", "create", "-s", "-r", REALM, typed=f"{master}\n{master}\n")
            self._add(SERVICE, self.keytab)
            self._start(port)
            for user, cache in self.tickets.items():
                key = directory / f"key-{user}"
                self._add(user, key)
                self._run("kinit", "-k", "-t", str(key), "-c", str(cache), user)
                key.unlink()
        except BaseException:
            self.stop()
            raise

    @property
    def principal(self) -> str:
        """The proxy's."""
        return f"{SERVICE}@{REALM}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to live in this realm."""
        return {"KRB5_CONFIG": str(self.config)}

    @property
    def pid(self) -> int | None:
        """The KDC's process id while it runs."""
        return None if self._kdc is None else self._kdc.pid

    def stop(self) -> None:
        """End the KDC. The files go with the directory."""
        kdc, self._kdc = self._kdc, None
        if kdc is None:
            return
        kdc.terminate()
        try:
            kdc.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            kdc.kill()
            kdc.wait()

    def _add(self, principal: str, keytab: Path) -> None:
        """With a key that nobody sees: a password would stand in the list of processes."""
        self._run("kadmin.local", "-r", REALM, "addprinc", "-randkey", principal)
        self._run("kadmin.local", "-r", REALM, "ktadd", "-k", str(keytab), "-norandkey", principal)

    def _start(self, port: int) -> None:
        with (self.directory / "kdc.log").open("ab") as log:
            self._kdc = subprocess.Popen(  # noqa: S603 - a program of Kerberos, on the PATH
                [_program("krb5kdc"), "-n", "-r", REALM], cwd=self.directory, env=self._inside(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        give_up = time.monotonic() + _SECONDS
        while not _accepts(port):
            if self._kdc.poll() is not None or time.monotonic() > give_up:
                raise Unavailable(f"the KDC does not begin: {_last_line(self.directory / 'kdc.log')}", "kdc")
            time.sleep(0.05)

    def _run(self, program: str, *arguments: str, typed: str = "") -> None:
        try:
            done = subprocess.run(  # noqa: S603 - a program of Kerberos, on the PATH
                [_program(program), *arguments], cwd=self.directory, env=self._inside(), input=typed,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{program} does not come to an end", "kdc") from None
        if done.returncode != 0:
            raise Unavailable(f"{program} has failed: {' '.join(done.stdout.split())[-200:]}", "kdc")

    def _inside(self) -> dict[str, str]:
        return {
            "PATH": _PATH,
            "HOME": str(self.directory),
            "LC_ALL": "C",
            "KRB5_KDC_PROFILE": str(self.directory / "kdc.conf"),
            **self.environment,
        }


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_PATH}")


def _program(name: str) -> str:
    found = _find(name)
    if found is None:
        raise Unavailable(f"{name} is not installed", "kdc")
    return found


def _free_port() -> int:
    """One that is free for TCP and UDP just now."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line), "it says nothing")
