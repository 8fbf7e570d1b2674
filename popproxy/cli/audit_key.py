"""``popproxy audit key``: the key that signs the log, and its public half for who verifies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from popproxy.cli.exits import CommandError, ExitCode
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption

PathArgument = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="The private key; by default audit.key.file.")
]
RotateOption = Annotated[
    bool, typer.Option("--rotate", help="Put a new key in the place of the one that is there; public keys are kept.")
]


def key(path: PathArgument = None, config: ConfigOption = DEFAULT_CONFIG, rotate: RotateOption = False) -> None:
    """Make a key that signs the audit log (Ed25519), and print its public half.

    The private key must be readable by root alone, or by popproxy's user if it is not started as root. The public one
    goes into FILE.pub beside it, after the ones that are there: give this file to who verifies, before there is
    anything to verify. After --rotate start popproxy again; what the old key has signed stays good.

    For example:

        popproxy audit key /etc/popproxy/audit.key

        popproxy audit key --rotate
    """
    from popproxy.observe.audit_keys import SigningKey, generate  # noqa: PLC0415
    from popproxy.types import Secret  # noqa: PLC0415

    path = path or _configured(config)
    public = path.with_name(path.name + ".pub")
    if path.exists() and not rotate:
        cure = "--rotate puts a new one in its place"
        raise CommandError(f"{path}: there is a key already; {cure}", ExitCode.CANTCREAT)
    if rotate and not path.exists():
        raise CommandError(f"{path}: there is no key that could be replaced", ExitCode.NOINPUT)
    pem = Secret(generate())
    made = SigningKey(pem)
    new = path.with_name(path.name + ".new")
    _write(new, pem.reveal(), path.stat() if rotate else None)
    try:
        with public.open("ab") as file:
            file.write(made.public_pem())
            file.flush()
            os.fsync(file.fileno())
        public.chmod(0o644)
        os.rename(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    print(f"private key: {path}   popproxy signs with it: key.file in the section audit")
    print(f"public keys: {public}   for who verifies; this one is {made.key_id}")
    print(made.public_pem().decode(), end="")


def _configured(config: Path) -> Path:
    from popproxy.config.loader import load  # noqa: PLC0415

    source = load(config).audit.key
    if source is None or source.file is None:
        raise CommandError(f"{config} has no audit.key.file: name the file to write", ExitCode.USAGE)
    return source.file


def _write(path: Path, octets: bytes, like: os.stat_result | None) -> None:
    path.unlink(missing_ok=True)  # left by a run that was killed
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(octets)
        file.flush()
        if like is not None and (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, like.st_uid, like.st_gid)
        os.fsync(descriptor)
