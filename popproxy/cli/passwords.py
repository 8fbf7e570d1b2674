"""``popproxy hash-password``, and how secrets are asked for: never as an argument, where every process can see them."""

from __future__ import annotations

import getpass
import sys

from popproxy.cli.exits import CommandError, ExitCode
from popproxy.cli.options import StdinOption
from popproxy.types import Secret


def hash_password(stdin: StdinOption = False) -> None:
    """Make a password hash (argon2id) for the users file.

    Asks twice for the password without showing it, or reads it from standard input, and prints the hash. A line of the
    users file is name:hash. The password is never an argument: the process list would show it.

    For example:

        popproxy hash-password

        pass show mail/alice | popproxy hash-password --stdin

        (printf alice:; popproxy hash-password) >> /etc/popproxy/users
    """
    secret = read_secret("Password", stdin)
    from popproxy.auth.hashes import hash_password as make_hash  # noqa: PLC0415

    print(make_hash(secret.reveal()))


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
