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

from popproxy.cli.exits import ExitCode
from tests.cli.helpers import PROGRAM, popproxy, process, write_config


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(config: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    server = subprocess.Popen([*PROGRAM, "serve", "-c", str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        give_up = time.monotonic() + 30
        while server.poll() is None and time.monotonic() < give_up:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield server
    finally:
        if server.poll() is None:
            server.kill()
        server.communicate()


def config_on(directory: Path, port: int) -> Path:
    return write_config(directory, listeners=[{"name": "pop3", "listen": [f"127.0.0.1:{port}"]}])


def test_serves_until_sigterm(tmp_path: Path) -> None:
    port = free_port()
    with serving(config_on(tmp_path, port), port) as server:
        pop = poplib.POP3("127.0.0.1", port, timeout=10)
        assert "STLS" in pop.capa()
        pop.quit()
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=30)
    assert server.returncode == 0, errors
    assert b"Traceback" not in errors
    actions = [json.loads(line)["event.action"] for line in (tmp_path / "audit.jsonl").read_bytes().splitlines()]
    assert (actions[0], actions[-1]) == ("audit_start", "audit_stop")


def test_check_knows_a_running_popproxy(tmp_path: Path) -> None:
    port = free_port()
    config = config_on(tmp_path, port)
    with serving(config, port) as server:
        run = popproxy("check", "--offline", "-c", str(config))
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
