"""A real PostgreSQL with its data in a temporary directory. It refuses to be root, so it is nobody."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.peers.canaries import canary
from tests.peers.certs import CertificateFiles
from tests.peers.process import PeerMissingError, Process, accepts, free_port, public_directory, require

USER = "popproxy"
_CONFIGURATION = """\
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{directory}'
fsync = off
max_connections = 60
password_encryption = 'scram-sha-256'
ssl = on
ssl_cert_file = '{directory}/server.crt'
ssl_key_file = '{directory}/server.key'
"""
_ACCESS = """\
local all postgres trust
local all all scram-sha-256
hostssl all all 127.0.0.1/32 scram-sha-256
hostnossl plain all 127.0.0.1/32 scram-sha-256
"""


class Postgresql:
    """Listens on `port`, with TLS, and on a Unix socket. Database plain also takes links without TLS."""

    def __init__(self, directory: Path, certificate: CertificateFiles, sql: str) -> None:
        self.directory = directory
        self.port = free_port()
        self.password = canary("sql")
        self.password_file = directory / "popproxy.password"
        self.password_file.write_text(self.password + "\n")
        self.password_file.chmod(0o600)
        self._bin = _binaries()
        self._data = directory / "data"
        for source, name in ((certificate.cert, "server.crt"), (certificate.key, "server.key")):
            shutil.copy(source, directory / name)
            (directory / name).chmod(0o600)
        self._data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            for path in (directory, *directory.iterdir()):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        self._run(
            [self._bin / "initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-N", "--no-sync", "-E", "UTF8"]
        )
        self._write("postgresql.conf", _CONFIGURATION.format(directory=directory, port=self.port))
        self._write("pg_hba.conf", _ACCESS)
        self.start()
        self.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{self.password}'", "postgres")
        for database in ("mail", "plain"):
            self.execute(f"CREATE DATABASE {database}", "postgres")
            self.execute(f"{sql}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {USER}", database)

    def url(self, database: str = "mail") -> str:
        """Without the password."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def execute(self, sql: str, database: str = "mail") -> None:
        """As the administrator."""
        self._run(
            [
                self._bin / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-h", self.directory, "-p", str(self.port),
                "-U", "postgres", "-d", database, "-c", sql,
            ]
        )  # fmt: skip

    def start(self) -> None:
        """Again, after `stop`."""
        command: list[str | Path] = [*_as_nobody(), self._bin / "postgres", "-D", self._data]
        self._process = Process("postgresql", command, self.directory / "postgresql.log", self.directory)
        ready = [
            *map(str, _as_nobody()),
            str(self._bin / "pg_isready"),
            "-q",
            "-h",
            str(self.directory),
            "-p",
            str(self.port),
        ]
        self._process.wait_for(
            lambda: accepts(self.port) and subprocess.run(ready, check=False).returncode == 0, "PostgreSQL", 60
        )

    def stop(self) -> None:
        """Ends every connection, at once."""
        self.thaw()
        self._process.signal(signal.SIGINT)
        self._process.stop(20)

    def freeze(self) -> None:
        """It still listens, but answers nothing, on old connections and on new ones, until `thaw`."""
        for pid in self._processes():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It answers again."""
        for pid in self._processes():
            os.kill(pid, signal.SIGCONT)

    def _processes(self) -> list[int]:
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        return [pid, *map(int, children.read_text().split())] if children.exists() else []

    def _write(self, name: str, text: str) -> None:
        path = self._data / name
        path.write_text(text)

    def _run(self, command: list[str | Path]) -> None:
        done = subprocess.run(
            [*_as_nobody(), *map(str, command)],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def _as_nobody() -> list[str]:
    if os.geteuid() != 0:
        return []
    nobody = pwd.getpwnam("nobody")
    return [require("setpriv"), f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise PeerMissingError("postgresql is not installed; run: make setup")
    return found[-1].parent


@contextlib.contextmanager
def postgresql(certificate: CertificateFiles, sql: str) -> Iterator[Postgresql]:
    """A PostgreSQL for the length of a with statement; `sql` makes its tables."""
    with public_directory("postgresql") as directory:
        server = Postgresql(directory, certificate, sql)
        try:
            yield server
        finally:
            server.stop()
