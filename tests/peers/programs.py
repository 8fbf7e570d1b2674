"""Runs foreign programs to their end, on pipes or on a terminal of their own."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import subprocess
import time
from pathlib import Path

from tests.peers.process import require


class ClientFailedError(AssertionError):
    """The program ended with an error; the text has what it printed."""


def run(command: list[str], directory: Path, seconds: float = 60) -> str:
    """Runs a program with `directory` as its home; ClientFailedError with its output unless it ends with 0."""
    done = subprocess.run(
        [require(command[0]), *command[1:]],
        cwd=directory,
        env=_environment(directory),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
    )
    output = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise ClientFailedError(f"{shlex.join(command)} ended with {done.returncode}:\n{output}")
    return output


def run_on_terminal(command: list[str], directory: Path, seconds: float = 60) -> str:
    """Runs a full-screen program; returns what it showed. ClientFailedError unless it ends with 0, in time."""
    terminal, inside = os.openpty()
    process = subprocess.Popen(
        [require(command[0]), *command[1:]],
        cwd=directory,
        env={**_environment(directory), "TERM": "vt100"},
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    screen = bytearray()
    end = time.monotonic() + seconds
    with contextlib.suppress(OSError):  # EIO: the program has closed its terminal
        while time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                screen += os.read(terminal, 65536)
    if time.monotonic() >= end:
        process.kill()
    status = process.wait()
    os.close(terminal)
    text = screen.decode(errors="replace")
    if status != 0:
        raise ClientFailedError(f"{shlex.join(command)} ended with {status}:\n{text}")
    return text


def _environment(directory: Path) -> dict[str, str]:
    return {"HOME": str(directory), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TERM": "dumb"}
