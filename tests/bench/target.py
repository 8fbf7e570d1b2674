"""A proxy under measurement: its processes, from start to stop."""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.accounting import Group

OPEN_FILES = 20000
_START_LIMIT = 30.0  # seconds to the first greeting
_STOP_LIMIT = 8.0  # seconds after each signal


class TargetError(Exception):
    """A target does not start. The text has its command and the end of its output."""


def limit_files() -> None:
    """Raise the limit of open files as far as it is allowed."""
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    except (ValueError, OSError):  # not allowed to raise the hard limit
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a target listens; `tls` is for TLS from the first octet, `http` serves metrics. 0: it does not."""

    plain: int
    tls: int = 0
    http: int = 0


@dataclass
class Target:
    """What this run starts, measures and stops. `most_idle` is how many idle sessions it can be asked to hold.

    `directory` holds its configuration, its output and what else it writes.
    """

    name: str
    commands: list[list[str]]
    ports: Ports
    cpus: set[int]
    directory: Path
    new_group: Callable[[str], Group]
    environment: Mapping[str, str] = field(default_factory=dict)
    most_idle: int = 9000
    group: Group = field(default_factory=Group)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start it and wait until it greets a client. Raises TargetError. Nothing happens if it runs."""
        if self.alive():
            return
        self.stop()
        self.group = self.new_group(self.directory.name)  # which no other target has
        environment = {**os.environ, **self.environment}
        with (self.directory / "output.log").open("ab") as log:
            for command in self.commands:
                # in a session of its own, so that Ctrl-C reaches us alone
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory, env=environment,
                    start_new_session=True, preexec_fn=self._enter,  # noqa: PLW1509 - we have no threads
                )  # fmt: skip
                self.processes.append(process)
                self.group.add(process.pid)
        self._wait_for(self.ports.plain, b"+OK")  # not just for a connection: that the kernel takes long before
        if self.ports.tls:
            self._wait_for(self.ports.tls)

    def alive(self) -> bool:
        """Whether all its processes run."""
        return bool(self.processes) and all(process.poll() is None for process in self.processes)

    def stop(self) -> None:
        """End its processes by their ids, by force if need be."""
        for sig in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.group.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sig)
            deadline = time.monotonic() + _STOP_LIMIT
            while (self._running() or self.group.pids()) and time.monotonic() < deadline:
                time.sleep(0.02)
        self.processes.clear()
        self.group.close()
        self.group = Group()

    def output(self) -> str:
        """The end of what it has printed."""
        return (self.directory / "output.log").read_text(errors="replace")[-2000:]

    def _running(self) -> bool:
        return sum(process.poll() is None for process in self.processes) > 0  # asks all of them: poll reaps

    def _enter(self) -> None:
        """In the new process, before exec."""
        self.group.enter()
        os.sched_setaffinity(0, self.cpus)
        limit_files()

    def _wait_for(self, port: int, greeting: bytes = b"") -> None:
        deadline = time.monotonic() + _START_LIMIT
        while time.monotonic() < deadline and self.alive():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), _START_LIMIT) as client:
                if client.recv(len(greeting)) == greeting:
                    return
            time.sleep(0.02)
        command = shlex.join(self.commands[0])
        raise TargetError(f"{self.name} does not listen on port {port}\n{command}\n{self.output()}")
