"""Secrets that are typed: on a real terminal, and in a pipe."""

from __future__ import annotations

import os
import pty
import sys

import pytest

from popproxy.auth.hashes import verify
from popproxy.cli.exits import ExitCode
from tests.cli.helpers import CANARY, PROGRAM, popproxy


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


def test_hash_of_a_password_typed_twice() -> None:
    code, output = type_at(["hash-password"], CANARY, CANARY)
    stored = output.split()[-1]
    assert code == 0
    assert CANARY not in output
    assert stored.startswith("$argon2id$")
    assert verify(CANARY.encode(), stored)


def test_two_different_entries_are_refused() -> None:
    code, output = type_at(["hash-password"], CANARY, "something else")
    assert code == ExitCode.DATAERR
    assert "differ" in output
    assert "$argon2" not in output


@pytest.mark.parametrize("password", [b"spaces  kept ", "pass\u00f6".encode(), b"\xff\xfe8-bit"])
def test_hash_from_standard_input(password: bytes) -> None:
    run = popproxy("hash-password", "--stdin", stdin=password + b"\nsecond line\n")
    assert run.returncode == 0, run.stderr
    assert verify(password, run.stdout.decode().strip())


@pytest.mark.parametrize(("stdin", "word"), [(b"", b"empty"), (b"\n", b"empty"), (b"a\x00b\n", b"control")])
def test_unusable_password_is_refused(stdin: bytes, word: bytes) -> None:
    run = popproxy("hash-password", "--stdin", stdin=stdin)
    assert run.returncode == ExitCode.DATAERR
    assert word in run.stderr
    assert run.stdout == b""


def test_without_terminal_stdin_must_be_asked_for() -> None:
    run = popproxy("hash-password", stdin=CANARY.encode())
    assert run.returncode == ExitCode.USAGE
    assert b"--stdin" in run.stderr
    assert CANARY.encode() not in run.stdout + run.stderr
