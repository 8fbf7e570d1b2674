"""What the commands over the audit log share: which files it is in, and how far they are."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from popproxy.cli.exits import CommandError, ExitCode

if TYPE_CHECKING:
    from popproxy.observe.audit_files import LogFile, Progress

FilesArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[FILE]...", help="Files to read, in this order; by default audit.file and its predecessors."
    ),
]


@contextlib.contextmanager
def log_files(files: list[Path] | None, config: Path) -> Iterator[list[LogFile]]:
    """`files` if any are named, else the audit log of `config` and its predecessors. Raises CommandError, OSError."""
    from popproxy.observe.audit_files import held, log_files  # noqa: PLC0415

    if files:
        named = files
        with held(lambda: named) as found:
            yield found
        return
    current = configured_file(config)
    with held(lambda: log_files(current), current) as found:
        if not found:
            raise CommandError(f"{current}: there is no audit log", ExitCode.NOINPUT)
        yield found


def configured_file(config: Path) -> Path:
    """``audit.file`` of `config`. Raises CommandError if there is none, and ConfigError."""
    from popproxy.config.loader import load  # noqa: PLC0415

    path = load(config).audit.file
    if path is None:
        raise CommandError(f"{config} has no audit.file: name the files to read", ExitCode.USAGE)
    return path


def progress() -> Progress | None:
    """On a terminal, how far it is."""
    if not sys.stderr.isatty():
        return None

    def show(path: Path, done: int, total: int) -> None:
        print(f"\r\x1b[K{path.name}: {100 * done // max(1, total)} %", end="", file=sys.stderr, flush=True)

    return show


def recorded_message(unique_id: str, config: Path) -> str:
    """How the log of `config` names a message. Raises ConfigError if it holds hashes, and the key cannot be read."""
    from popproxy.app.audit import read_signing_key, unique_ids  # noqa: PLC0415
    from popproxy.config.loader import load  # noqa: PLC0415

    audit = load(config).audit if config.exists() else None
    if audit is None or audit.unique_ids != "hashed":
        return unique_id
    return unique_ids(audit, read_signing_key(audit, str(config))).hashed(unique_id.encode())


def runs_here(pid: int | None, identity: str | None) -> bool:
    """Is that process at work on this machine, and in this container?"""
    from popproxy.observe.process_identity import process_identity  # noqa: PLC0415

    return pid is not None and identity is not None and process_identity(pid) == identity
