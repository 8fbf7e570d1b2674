"""A real name server (NSD) with a zone of the test's, which can be changed, stopped and silenced."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.exception
import dns.message
import dns.query

from tests.peers.process import Process, free_port, public_directory, require, signal_all

CONFIG = """\
server:
  ip-address: 127.0.0.1@{port}
  port: {port}
  username: ""
  chroot: ""
  zonesdir: "{directory}"
  pidfile: ""
  database: ""
  logfile: "{directory}/nsd.log"
  xfrdfile: "{directory}/xfrd.state"
  zonelistfile: "{directory}/zone.list"
  server-count: 1
  rrl-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: "example.test"
  zonefile: "zone"
"""
ZONE = """\
$ORIGIN example.test.
$TTL 1
@ 1 IN SOA ns.example.test. admin.example.test. {serial} 3600 600 86400 1
@ IN NS ns.example.test.
ns IN A 127.0.0.1
{records}
"""


class NameServer:
    """Answers for example.test. Records have a time to live of one second, if they do not say another."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._serial = 0
        self.port = free_port()
        self._process: Process | None = None

    @property
    def address(self) -> str:
        """As it stands in names.servers."""
        return f"127.0.0.1:{self.port}"

    def start(self, *records: str) -> None:
        """Serve these."""
        self._write(records)
        (self._directory / "nsd.conf").write_text(CONFIG.format(port=self.port, directory=self._directory))
        command = [require("nsd"), "-d", "-c", str(self._directory / "nsd.conf")]
        self._process = Process("nsd", command, self._directory / "nsd.out", self._directory)
        self._process.wait_for(self._serves, "nsd to answer")

    def change(self, *records: str) -> None:
        """Serve these instead. Returns when it does."""
        self._write(records)
        assert self._process is not None
        self._process.signal(signal.SIGHUP)
        self._process.wait_for(self._serves, "nsd to have the new zone")

    def silence(self) -> None:
        """No answers, until `speak`."""
        self._signal(signal.SIGSTOP)

    def speak(self) -> None:
        """After `silence`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        signal_all(self._process.pid, number)

    def stop(self) -> None:
        """Nobody is there any more."""
        if self._process is not None:
            self.speak()
            self._process.stop()
            self._process = None

    def _write(self, records: tuple[str, ...]) -> None:
        self._serial += 1
        (self._directory / "zone").write_text(ZONE.format(serial=self._serial, records="\n".join(records)))

    def _serves(self) -> bool:
        question = dns.message.make_query("example.test", "SOA")
        try:
            answer = dns.query.udp(question, "127.0.0.1", timeout=0.3, port=self.port)
        except (dns.exception.DNSException, OSError):
            time.sleep(0.05)
            return False
        return any(record.serial == self._serial for rrset in answer.answer for record in rrset)


@contextmanager
def name_server(*records: str) -> Iterator[NameServer]:
    """One that serves these records."""
    with public_directory("nsd") as directory:
        server = NameServer(directory)
        try:
            server.start(*records)
            yield server
        finally:
            server.stop()
