"""``popproxy serve`` as a process: starts, answers, is seen by check, ends on SIGTERM."""

from __future__ import annotations

import contextlib
import json
import os
import poplib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from popproxy.cli.exits import ExitCode
from tests.cli.helpers import PROGRAM, popproxy, process, write_config

pytestmark = pytest.mark.long


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A service on a port that the system chooses, and that port: one looked for beforehand may be taken meanwhile."""
    config = config_on(directory, 0)
    server = subprocess.Popen([*PROGRAM, "serve", "-c", str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield server, port_of(server)
    finally:
        if server.poll() is None:
            server.kill()
        server.communicate()


def port_of(server: subprocess.Popen[bytes]) -> int:
    """Waits until `server` listens on one port."""
    give_up = time.monotonic() + 60
    while not (ports := listening(server.pid)):
        if server.poll() is not None or time.monotonic() > give_up:
            server.kill()
            pytest.fail(f"popproxy does not listen: {server.communicate()[1].decode()}")
        time.sleep(0.05)
    [port] = ports
    return port


def listening(pid: int) -> list[int]:
    """The TCP ports that a process listens on over IPv4, from Linux's own books (proc(5))."""
    links = []
    with contextlib.suppress(OSError):  # it closes one, or ends, while we look
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            links.append(str(entry.readlink()))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links]


def config_on(directory: Path, port: int) -> Path:
    return write_config(directory, listeners=[{"name": "pop3", "listen": [f"127.0.0.1:{port}"]}])


def test_serves_until_sigterm(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, port):
        pop = poplib.POP3("127.0.0.1", port, timeout=60)
        assert "STLS" in pop.capa()
        pop.quit()
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=60)
    assert server.returncode == 0, errors
    assert b"Traceback" not in errors
    actions = [json.loads(line)["event.action"] for line in (tmp_path / "audit.jsonl").read_bytes().splitlines()]
    assert (actions[0], actions[-1]) == ("audit_start", "audit_stop")


def test_check_knows_a_running_popproxy(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, port):
        run = popproxy("check", "--offline", "-c", str(config_on(tmp_path, port)))
        assert run.returncode == 0, run.stdout
        assert f"127.0.0.1:{port} is held by a running popproxy (pid {server.pid})".encode() in run.stdout


def test_taken_port_is_78_and_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = config_on(tmp_path, taken.getsockname()[1])
        run = process("serve", "-c", str(config))
    assert run.returncode == ExitCode.CONFIG
    lines = [line for line in run.stderr.decode().splitlines() if line.startswith("popproxy: ")]
    assert len(lines) == 1
    assert "listeners[0].listen[0]" in lines[0]
    assert os.strerror(98) in lines[0]


def test_who_starts_it_without_any_standard_stream_gets_the_service_all_the_same(tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *PROGRAM, "serve", "-c", str(config_on(tmp_path, 0))]
    server = subprocess.Popen(command)
    try:
        port = port_of(server)
        with contextlib.closing(poplib.POP3("127.0.0.1", port, timeout=60)) as client:
            assert client.getwelcome().startswith(b"+OK")
        assert {os.readlink(f"/proc/{server.pid}/fd/{descriptor}") for descriptor in range(3)} == {os.devnull}
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
