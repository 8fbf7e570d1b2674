"""Secrets that are typed: on a real terminal, and in a pipe."""

from __future__ import annotations

import pytest

from popproxy.auth.hashes import verify
from popproxy.cli.exits import ExitCode
from tests.cli.helpers import CANARY, popproxy, type_at


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
