"""A real rsyslogd that writes what it gets into a file, and a real systemd-journald in a mount namespace of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.certs import CertificateFiles
from tests.peers.process import Process, accepts, free_port, public_directory, require

_CONFIGURATION = """
global(workDirectory="{directory}" maxMessageSize="128k" defaultNetstreamDriver="{driver}"{tls})
module(load="imtcp" streamDriver.name="{driver}" streamDriver.mode="{mode}" streamDriver.authMode="anon")
template(name="record" type="string" string="%msg%\\n")
ruleset(name="audit") {{ action(type="omfile" file="{log}" template="record" fileCreateMode="0644") }}
input(type="imtcp" port="{port}" address="127.0.0.1" ruleset="audit")
"""


class Rsyslog:
    """Starts at once; `port` stays the same through `stop` and `start`. With a `certificate` it speaks TLS only."""

    def __init__(self, directory: Path, certificate: CertificateFiles | None = None, ca: Path | None = None) -> None:
        self.log = directory / "received.log"
        self.port = free_port()
        tls = ""
        if certificate is not None:
            tls = (
                f' defaultNetstreamDriverCAFile="{ca}" defaultNetstreamDriverCertFile="{certificate.cert}"'
                f' defaultNetstreamDriverKeyFile="{certificate.key}"'
            )
        self._directory = directory
        self._file = directory / "rsyslog.conf"
        self._file.write_text(
            _CONFIGURATION.format(
                directory=directory, driver="ptcp" if certificate is None else "gtls", tls=tls,
                mode=0 if certificate is None else 1, log=self.log, port=self.port,
            )
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        """Wait until it listens."""
        pid = self._directory / "rsyslog.pid"
        command = [require("rsyslogd"), "-n", "-f", str(self._file), "-i", str(pid)]
        self._process = Process("rsyslog", command, self._directory / "rsyslog.out", self._directory)
        self._process.wait_for(lambda: accepts(self.port), "rsyslogd to listen")

    def stop(self) -> None:
        """It writes what it has, and ends."""
        self._process.stop()

    def lines(self) -> list[bytes]:
        """What it has written, without line ends."""
        return self.log.read_bytes().splitlines() if self.log.exists() else []


class Journald:
    """A systemd-journald whose /run is its own. `socket` is where it takes records."""

    def __init__(self, directory: Path) -> None:
        if os.geteuid() != 0:
            pytest.fail("a systemd-journald of its own needs root: run the tests as root")
        script = (
            "mount -t tmpfs none /run && mkdir -p /run/systemd/journal /run/log/journal && "
            "exec /lib/systemd/systemd-journald"
        )
        command = [require("unshare"), "--mount", "sh", "-c", script]
        self._process = Process("journald", command, directory / "journald.out", directory)
        self._root = Path(f"/proc/{self._process.pid}/root")
        self.socket = self._root / "run/systemd/journal/socket"
        self._process.wait_for(self.socket.exists, "journald to listen")

    def lines(self, identifier: str) -> list[bytes]:
        """The messages under this identifier."""
        command = [
            require("journalctl"),
            "-D",
            str(self._root / "run/log/journal"),
            "-t",
            identifier,
            "-o",
            "cat",
            "-q",
        ]
        ended = subprocess.run([*command, "--no-pager", "--all"], capture_output=True, timeout=60, check=False)
        return ended.stdout.splitlines()

    def stop(self) -> None:
        """End it."""
        self._process.stop()


@contextlib.contextmanager
def rsyslog(certificate: CertificateFiles | None = None, ca: Path | None = None) -> Iterator[Rsyslog]:
    """One that ends with the block."""
    with public_directory("rsyslog") as directory:
        server = Rsyslog(directory, certificate, ca)
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def journald() -> Iterator[Journald]:
    """One that ends with the block."""
    with public_directory("journald") as directory:
        server = Journald(directory)
        try:
            yield server
        finally:
            server.stop()
