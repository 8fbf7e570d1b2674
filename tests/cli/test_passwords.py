"""Secrets that are typed: on a real terminal, and in a pipe."""

from __future__ import annotations

import pytest

from popproxy.auth.hashes import verify
from popproxy.cli.exits import ExitCode
from tests.cli.helpers import CANARY, popproxy, type_at

pytestmark = pytest.mark.long


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


def test_verifiers_for_scram() -> None:
    options = ["--scheme", "scram-sha-256", "--scheme", "scram-sha-1", "--scheme", "argon2id", "--iterations", "5000"]
    run = popproxy("hash-password", "--stdin", *options, stdin="p\u00e4ss".encode())
    assert run.returncode == 0, run.stderr
    sha_256, sha_1, argon2id = run.stdout.decode().split()
    assert sha_256.startswith("{SCRAM-SHA-256}5000,")
    assert sha_1.startswith("{SCRAM-SHA-1}5000,")
    assert all(verify("p\u00e4ss".encode(), stored) for stored in (sha_256, sha_1, argon2id))


def test_password_that_scram_cannot_carry_is_refused() -> None:
    run = popproxy("hash-password", "--stdin", "--scheme", "scram-sha-256", stdin=b"\xff" + CANARY.encode())
    assert (run.returncode, run.stdout) == (ExitCode.DATAERR, b"")
    assert b"SCRAM does not allow" in run.stderr
    assert CANARY.encode() not in run.stderr


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
