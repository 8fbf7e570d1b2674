"""Configurations, certificates and processes for the tests of the command line."""

from __future__ import annotations

import functools
import io
import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import typer.main

from popproxy.cli.main import main, make_app
from popproxy.demo.certificates import Issued, issue, make_authority

PROGRAM = [sys.executable, "-m", "popproxy"]
CANARY = "correct-horse-canary"


@dataclass(frozen=True, slots=True)
class Run:
    """How a command ended and what it printed."""

    returncode: int
    stdout: bytes
    stderr: bytes


@functools.cache
def command_line() -> Any:
    """The whole command line as click has it, made once: it takes as long as most of the commands."""
    return typer.main.get_command(make_app())


def popproxy(*arguments: str, stdin: bytes = b"") -> Run:
    """Run the command line in this process, its three streams being pipes."""
    streams = [io.TextIOWrapper(io.BytesIO(octets), "utf-8", write_through=True) for octets in (stdin, b"", b"")]
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = streams
    try:
        with mock.patch.object(sys.modules[main.__module__], "make_app", command_line):
            code = main(list(arguments))
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
    output, errors = (stream.buffer.getvalue() for stream in streams[1:])
    return Run(code, output, errors)


def process(*arguments: str, env: dict[str, str] | None = None) -> Run:
    """Run the program as a process of its own."""
    environment = {**os.environ, "NO_COLOR": "1", **(env or {})}
    ended = subprocess.run(
        [*PROGRAM, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, env=environment, check=False
    )
    return Run(ended.returncode, ended.stdout, ended.stderr)


def type_at(command: list[str], *answers: str) -> tuple[int, str]:
    """Run `command` on a terminal of its own and type an answer at each prompt."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*PROGRAM, *command])
    output = b""
    waiting = list(answers)
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:
            break
        if not chunk:
            break
        output += chunk
        if waiting and output.rstrip(b" ").endswith(b":"):
            os.write(terminal, f"{waiting.pop(0)}\n".encode())
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output.decode()


def write_pair(directory: Path, issued: Issued, name: str = "server", chain: tuple[Issued, ...] = ()) -> dict[str, str]:
    """Certificate (with `chain`) and key as files; returns them as they stand in a configuration."""
    cert, key = directory / f"{name}.pem", directory / f"{name}.key"
    cert.write_bytes(b"".join(one.certificate_pem() for one in (issued, *chain)))
    key.write_bytes(issued.key_pem())
    key.chmod(0o600)
    return {"cert": str(cert), "key": str(key)}


def configuration(directory: Path, **sections: Any) -> dict[str, Any]:
    """A configuration that is in order (offline), with `sections` replaced or added; None removes one."""
    authority = make_authority(days=400)
    base: dict[str, Any] = {
        "listeners": [{"name": "pop3", "listen": ["127.0.0.1:0"]}],
        "pools": {"main": {"servers": ["127.0.0.1:9"], "tls": "none", "allow_cleartext": True}},
        "tls": {"certificates": [write_pair(directory, issue(authority, ["localhost"], days=300), chain=(authority,))]},
        "audit": {"file": str(directory / "audit.jsonl")},
        "http": {"listen": None},
        "control": {"socket": None},
        "process": {"user": "nobody"} if os.geteuid() == 0 else {},
    }
    directory.chmod(0o777)  # the service runs as another user, and writes here
    return {key: value for key, value in {**base, **sections}.items() if value is not None}


def write_config(directory: Path, **sections: Any) -> Path:
    """`configuration` as a file; JSON is YAML."""
    path = directory / "popproxy.yaml"
    path.write_text(json.dumps(configuration(directory, **sections), indent=1))
    return path
