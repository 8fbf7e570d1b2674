"""A throw-away Heimdal realm: the KDC that allows constrained delegation without a directory behind it.

Its programs are unpacked, not installed, since their packages conflict with MIT's. Clients and services use MIT's
libraries all the same: `Realm.environment` is for them.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.peers.canaries import canary
from tests.peers.process import REPOSITORY, PeerMissingError, Process, accepts, free_port, public_directory, require

_TREE = REPOSITORY / ".venv/peers/heimdal"
_CONF = """
[libdefaults]
    default_realm = {name}
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
    forwardable = true
    default_ccache_name = FILE:{directory}/default-ccache
[realms]
    {name} = {{
        kdc = 127.0.0.1:{port}
    }}
[domain_realm]
    localhost = {name}
[kdc]
    database = {{
        dbname = {directory}/heimdal
        realm = {name}
        mkey_file = {directory}/mkey
        acl_file = {directory}/kadmind.acl
        log_file = {directory}/log
    }}
[logging]
    kdc = 0-1/FILE:{directory}/kdc.log
"""


class HeimdalRealm:
    """A running Heimdal KDC. Services may delegate to those that `allow_delegation` names, and to no others."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name
        self.port = free_port()
        self.passwords: dict[str, str] = {}
        self._files = 0
        self.config = directory / "krb5.conf"
        self.config.write_text(_CONF.format(name=name, directory=directory, port=self.port))
        self._heimdal("usr/sbin/kstash", "--random-key", f"--key-file={directory}/mkey")
        self.kadmin("init", "--realm-max-ticket-life=1d", "--realm-max-renewable-life=1d", name)
        command = [
            _program("usr/lib/heimdal-servers/kdc"),
            f"--config-file={self.config}",
            f"--ports={self.port}",
            "--addresses=127.0.0.1",
        ]
        log = directory / "kdc.log"
        self._process = Process(f"heimdal kdc {name} on {self.port}", command, log, directory, self._inside())
        self._process.wait_for(lambda: accepts(self.port), "the KDC listens")

    @property
    def environment(self) -> dict[str, str]:
        """What a process with MIT's libraries needs to live in this realm."""
        return {"KRB5_CONFIG": str(self.config)}

    def user(self, name: str) -> str:
        """Adds a user; returns the password."""
        password = self.passwords[name] = canary(name)
        self.kadmin("add", "--use-defaults", f"--password={password}", name)
        return password

    def service(self, *principals: str) -> None:
        """Adds services with random keys."""
        for principal in principals:
            self.kadmin("add", "--use-defaults", "--random-key", principal)

    def keytab(self, *principals: str) -> Path:
        """A new file with the keys of `principals`."""
        path = self._file("keytab")
        self.kadmin("ext_keytab", f"--keytab=FILE:{path}", *principals)
        return path

    def allow_delegation(self, front: str, backend: str, *, transition: bool = True) -> None:
        """Lets `front` act for users at `backend`; with `transition` also for those that showed it no ticket."""
        self.kadmin("modify", f"--constrained-delegation={backend}@{self.name}", front)
        if transition:
            self.kadmin("modify", "--attributes=+trusted-for-delegation", front)

    def kinit(self, user: str, *options: str) -> Path:
        """Logs a user in with MIT's kinit; returns the credential cache."""
        path = self._file("ccache")
        self._run([require("kinit"), *options, "-c", str(path), user], self.passwords[user] + "\n", self.environment)
        return path

    def kvno(self, ccache: Path, *services: str) -> None:
        """Fetches tickets for services into a credential cache."""
        self._run([require("kvno"), "-c", str(ccache), *services], "", self.environment)

    def kadmin(self, *query: str) -> str:
        """One query for Heimdal's kadmin, on the database itself."""
        return self._heimdal("usr/bin/kadmin.heimdal", "-l", "-r", self.name, *query)

    @property
    def kadmin_script(self) -> str:
        """A line for a shell script that does what `kadmin` does on the KDC's own machine."""
        inside = " ".join(f"{name}={value}" for name, value in self._inside().items())
        return f'exec env {inside} {_program("usr/bin/kadmin.heimdal")} -r {self.name} "$@"'

    def stop(self) -> None:
        """Ends the KDC."""
        self._process.stop()

    def _file(self, kind: str) -> Path:
        self._files += 1
        return self.directory / f"{kind}-{self._files}"

    def _heimdal(self, program: str, *arguments: str) -> str:
        return self._run([_program(program), *arguments], "", self._inside())

    def _inside(self) -> dict[str, str]:
        libraries = ":".join(str(path) for path in sorted(_TREE.glob("usr/lib/*-linux-gnu*")))
        return {**self.environment, "LD_LIBRARY_PATH": f"{libraries}:{libraries}/heimdal"}

    def _run(self, command: list[str], stdin: str, environment: dict[str, str]) -> str:
        whole = {"PATH": "/usr/bin:/bin", "HOME": str(self.directory), "LC_ALL": "C", **environment}
        done = subprocess.run(
            command, input=stdin, env=whole, cwd=self.directory, capture_output=True, text=True, timeout=60, check=False
        )
        # Heimdal's kadmin ends with 0 after some failures, but then it has something to say
        failed = done.returncode != 0 or "kadmin:" in done.stderr
        assert not failed, f"{command[0]} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout


def _program(path: str) -> str:
    program = _TREE / path
    if not program.exists():
        raise PeerMissingError(f"{program} is missing; run: make setup")
    return str(program)


@contextlib.contextmanager
def heimdal_realm(name: str = "HEIMDAL.TEST") -> Iterator[HeimdalRealm]:
    """A realm for the length of a with statement."""
    with public_directory("heimdal") as directory:
        it = HeimdalRealm(directory, name)
        try:
            yield it
        finally:
            it.stop()
