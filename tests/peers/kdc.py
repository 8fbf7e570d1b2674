"""A throw-away MIT realm: database, KDC and configuration in one directory, on a free port of the loopback address.

Nothing of the machine's own Kerberos configuration is read or written: whoever is to use the realm gets
`Realm.environment`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.peers.canaries import canary
from tests.peers.clock import shifted
from tests.peers.process import Process, accepts, free_port, public_directory, require

REALM = "POPPROXY.TEST"

_KRB5_CONF = """
[libdefaults]
    default_realm = {name}
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
    clockskew = {clockskew}
    forwardable = true
[realms]
{realms}
[domain_realm]
    localhost = {name}
"""

_KDC_CONF = """
[realms]
    {name} = {{
        database_name = {directory}/principal
        key_stash_file = {directory}/stash
        acl_file = {directory}/kadm5.acl
        kdc_listen = 127.0.0.1:{port}
        kdc_tcp_listen = 127.0.0.1:{port}
        max_life = 1d
        max_renewable_life = 1d
        supported_enctypes = aes256-cts:normal
    }}
[logging]
    default = FILE:{directory}/kdc.log
"""


class Realm:
    """A running KDC and what administers it. `forwardable` tickets, one AES-256 key per principal."""

    def __init__(self, directory: Path, name: str = REALM) -> None:
        self.directory = directory
        self.name = name
        self.port = free_port()
        self.passwords: dict[str, str] = {}
        self._others: dict[str, int] = {}
        self._files = 0  # for names of files
        self._clock: dict[str, str] = {}  # of a wrong one
        self._process: Process | None = None
        self.config = self.configuration("krb5.conf")
        (directory / "kdc.conf").write_text(_KDC_CONF.format(name=name, directory=directory, port=self.port))
        self._create_database()
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to live in this realm; neither credential cache nor keytab."""
        return {"KRB5_CONFIG": str(self.config), "KRB5_KDC_PROFILE": str(self.directory / "kdc.conf")}

    def configuration(self, file: str, *, clockskew: int = 300) -> Path:
        """Writes a krb5.conf of this realm, and of those that `trust` has made known."""
        path = self.directory / file
        ports = {self.name: self.port, **self._others}
        realms = "".join(f"    {name} = {{\n        kdc = 127.0.0.1:{port}\n    }}\n" for name, port in ports.items())
        path.write_text(_KRB5_CONF.format(name=self.name, realms=realms, clockskew=clockskew))
        return path

    def user(self, name: str, *options: str) -> str:
        """Adds a user; returns the password. `options` are those of kadmin's addprinc."""
        password = self.passwords[name] = canary(name.replace("/", "-"))
        self.kadmin("addprinc", *options, "-pw", password, name)
        return password

    def service(self, *principals: str) -> None:
        """Adds services with random keys."""
        for principal in principals:
            self.kadmin("addprinc", "-randkey", principal)

    def keytab(self, *principals: str) -> Path:
        """A new file with the present keys of `principals`."""
        path = self._file("keytab")
        self.add_to_keytab(path, *principals)
        return path

    def add_to_keytab(self, path: Path, *principals: str) -> None:
        """Appends the present keys of `principals` to a keytab."""
        self.kadmin("ktadd", "-k", str(path), "-norandkey", *principals)

    def rotate(self, principal: str) -> None:
        """Gives a service a new key; the KDC issues no more tickets under the old one."""
        self.kadmin("cpw", "-randkey", principal)

    def trust(self, other: Realm) -> None:
        """Lets users of `other` get tickets for services here, and makes each realm known to the other."""
        shared = canary("trust")
        for realm, peer in ((self, other), (other, self)):
            realm.kadmin("addprinc", "-pw", shared, f"krbtgt/{self.name}@{other.name}")
            realm._others[peer.name] = peer.port
            realm.config = realm.configuration("krb5.conf")

    def kinit(self, user: str, *options: str) -> Path:
        """Logs a user in; returns the credential cache, a file of its own. `options` are those of kinit."""
        path = self._file("ccache")
        self._run("kinit", *options, "-c", str(path), user, stdin=self.passwords[user] + "\n")
        return path

    def kvno(self, ccache: Path, *services: str) -> None:
        """Fetches tickets for services into a credential cache."""
        self._run("kvno", "-c", str(ccache), *services)

    def kadmin(self, *query: str) -> str:
        """One query for kadmin.local, which works on the database and needs no running KDC."""
        return self._run("kadmin.local", "-r", self.name, *query)

    def start(self) -> None:
        """Starts the KDC on the same port as before."""
        command: list[str | Path] = [require("krb5kdc"), "-n", "-r", self.name, "-P", self.directory / "kdc.pid"]
        title = f"krb5kdc {self.name} on {self.port}"
        self._process = Process(title, command, self.directory / "kdc.log", self.directory, self._whole_environment())
        self._process.wait_for(lambda: accepts(self.port), "the KDC listens")

    def stop(self) -> None:
        """Ends the KDC: nobody answers on its port."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGCONT)
            self._process.stop()
            self._process = None

    @contextlib.contextmanager
    def at(self, seconds: int) -> Iterator[None]:
        """For the length of a with statement the clocks of the KDC and of `kinit` are wrong by so many seconds."""
        self.stop()
        self._clock = shifted(seconds)
        try:
            self.start()
            yield
        finally:
            self.stop()
            self._clock = {}
            self.start()

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """For the length of a with statement the KDC takes requests and never answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def _create_database(self) -> None:
        self._run("kdb5_util", "create", "-s", "-r", self.name, "-P", canary("master"))

    def _file(self, kind: str) -> Path:
        self._files += 1
        return self.directory / f"{kind}-{self._files}"

    def _whole_environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.directory),
            "LC_ALL": "C",
            **self.environment,
            **self._clock,
        }

    def _run(self, program: str, *arguments: str, stdin: str = "") -> str:
        command = [require(program), *arguments]
        done = subprocess.run(
            command, input=stdin, env=self._whole_environment(), capture_output=True, text=True, timeout=60, check=False
        )
        # kadmin.local ends with 0 whatever happened before Kerberos 1.20; what it prints tells
        assert done.returncode == 0, f"{program} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout


@contextlib.contextmanager
def realm(name: str = REALM) -> Iterator[Realm]:
    """A realm for the length of a with statement."""
    with public_directory("realm") as directory:
        it = Realm(directory, name)
        try:
            yield it
        finally:
            it.stop()
