"""What all real peers have in common: free ports, a directory, a process that is stopped by its id, logs."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LOGS: dict[str, Path] = {}
"""Logs of the peers that run at present, by title: shown with a failing test."""
PATIENCE = 60.0
"""Seconds until a test gives up waiting for a program: the machine may have ten times as much to do as it can."""


class PeerMissingError(Exception):
    """A real peer is not installed; the text says what installs it."""


def require(program: str) -> str:
    """The path of a program. Raises PeerMissingError, naming the cure: a test never skips for want of its peer."""
    for path in (shutil.which(program), f"/usr/sbin/{program}", f"/usr/bin/{program}"):
        if path is not None and Path(path).exists():
            return path
    raise PeerMissingError(f"{program} is not installed; run: make setup")


_handed_out: set[int] = set()
_EPHEMERAL = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = range(10_240, max(_EPHEMERAL, 20_480))[_WORKER :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
"""Each worker of pytest-xdist has its own: what one has chosen, and does not listen on yet, no other one takes."""


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on and that was not handed out before.

    Not one of those that the kernel gives to connections: by the time somebody listens there, it could be in use.
    """
    while True:
        port = secrets.choice(_PORTS)
        if port in _handed_out:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            _handed_out.add(port)
            return port


def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Polls until `condition` holds; AssertionError naming `what` when it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain: {what}"
        time.sleep(0.02)


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def signal_all(pid: int, number: int) -> None:
    """Send a signal to a process and all that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    for child in children:
        with contextlib.suppress(FileNotFoundError):
            signal_all(int(child), number)


def limit_with(left: int, taken: set[int]) -> int:
    """The limit (RLIMIT_NOFILE) under which so many descriptors are left, where these are taken."""
    limit = 0
    while limit in taken or left:
        left -= limit not in taken
        limit += 1
    return limit


@contextlib.contextmanager
def public_directory(name: str) -> Iterator[Path]:
    """A temporary directory that other users may enter, which the private ones of pytest do not allow."""
    path = Path(tempfile.mkdtemp(prefix=f"popproxy-{name}-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Process:
    """A program in the background, standard output and error in a file, stopped by SIGTERM and then SIGKILL."""

    def __init__(
        self, title: str, command: Sequence[str | Path], log: Path, cwd: Path, env: dict[str, str] | None = None
    ) -> None:
        self.title = title
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=cwd,
                env=env,
            )
        LOGS[title] = log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        """Like `wait_until`, but fails at once when the process has ended. A failure stops it and shows its log."""

        def met() -> bool:
            status = self._process.poll()
            assert status is None, f"{self.title} ended with {status}"
            return condition()

        try:
            wait_until(met, what, seconds)
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}\n{self.log.read_text(errors='replace')}") from None

    def signal(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def stop(self, seconds: float = 30.0) -> int:
        """Asks it to end, insists after `seconds`. Returns the exit status."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        LOGS.pop(self.title, None)
        return int(self._process.returncode)
