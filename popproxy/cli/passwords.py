"""``popproxy hash-password``, and how secrets are asked for: never as an argument, where every process can see them."""

from __future__ import annotations

import getpass
import sys
from enum import StrEnum
from typing import Annotated

import typer

from popproxy.cli.exits import CommandError, ExitCode
from popproxy.cli.options import StdinOption
from popproxy.sasl.scram_verifier import ITERATIONS, MAX_ITERATIONS, MIN_ITERATIONS, UnusableVerifier
from popproxy.types import Mechanism, Secret


class HashScheme(StrEnum):
    """What a password can be made into."""

    ARGON2ID = "argon2id"
    SCRAM_SHA_1 = "scram-sha-1"
    SCRAM_SHA_256 = "scram-sha-256"


def hash_password(
    stdin: StdinOption = False,
    scheme: Annotated[
        list[HashScheme] | None,
        typer.Option(help="What to make; may be given several times.", show_default="argon2id"),
    ] = None,
    iterations: Annotated[
        int, typer.Option(min=MIN_ITERATIONS, max=MAX_ITERATIONS, help="Work that a SCRAM client does at each login.")
    ] = ITERATIONS,
) -> None:
    """Make a password hash for the users file: argon2id, or what SCRAM needs.

    Asks twice for the password without showing it, or reads it from standard input, and prints the hash. A line of the
    users file is name:hash, or name:hash hash. The password is never an argument: the process list would show it.

    For example:

        popproxy hash-password

        pass show mail/alice | popproxy hash-password --stdin

        popproxy hash-password --scheme scram-sha-256 --scheme scram-sha-1

        (printf alice:; popproxy hash-password) >> /etc/popproxy/users
    """
    secret = read_secret("Password", stdin)
    print(*(_hash(secret.reveal(), one, iterations) for one in scheme or [HashScheme.ARGON2ID]))


def _hash(password: bytes, scheme: HashScheme, iterations: int) -> str:
    from popproxy.auth.hashes import hash_password as make_hash  # noqa: PLC0415
    from popproxy.auth.hashes import scram_verifier  # noqa: PLC0415

    if scheme is HashScheme.ARGON2ID:
        return make_hash(password)
    try:
        return scram_verifier(password, Mechanism(scheme.value.upper()), iterations)
    except UnusableVerifier as error:
        raise CommandError(f"{error}; nothing was done", ExitCode.DATAERR) from None


def read_secret(label: str, from_stdin: bool) -> Secret:
    """A secret from the first line of standard input, or asked for twice on the terminal. Raises CommandError."""
    value = sys.stdin.buffer.readline().rstrip(b"\r\n") if from_stdin else _ask(label)
    if not value:
        raise CommandError(f"{label.lower()} is empty; nothing was done", ExitCode.DATAERR)
    if any(octet < 0x20 or octet == 0x7F for octet in value):
        text = f"{label.lower()} contains a control character, with which nobody could log in; nothing was done"
        raise CommandError(text, ExitCode.DATAERR)
    return Secret(value)


def _ask(label: str) -> bytes:
    if not sys.stdin.isatty():
        raise CommandError("standard input is no terminal; use --stdin to read the secret from it", ExitCode.USAGE)
    first = getpass.getpass(f"{label}: ")
    if first and getpass.getpass(f"{label} again: ") != first:
        raise CommandError("the two entries differ; nothing was done", ExitCode.DATAERR)
    return first.encode("utf-8", "surrogateescape")
