"""What all commands to a running popproxy share: where its socket is, and what becomes of its answers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from popproxy.cli.exits import CommandError, ExitCode
from popproxy.cli.options import DEFAULT_CONFIG

SocketOption = Annotated[
    Path | None,
    typer.Option(
        "--socket", metavar="PATH", envvar="POPPROXY_SOCKET",
        help="The control socket, instead of the one that the configuration names.",
    ),
]  # fmt: skip


def ask(config: Path, socket: Path | None, command: str, **arguments: object) -> Any:
    """The result of a command. Raises CommandError, Unavailable, and ConfigError if the socket's place is not known."""
    from popproxy.admin.control_client import ask as ask_at  # noqa: PLC0415

    with _explained():
        return ask_at(socket or _socket(config), command, **arguments)


def follow(config: Path, socket: Path | None, command: str, **arguments: object) -> Iterator[Any]:
    """The events of a command that streams, as they come. Raises like `ask`."""
    from popproxy.admin.control_client import follow as follow_at  # noqa: PLC0415

    with _explained():
        yield from follow_at(socket or _socket(config), command, **arguments)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    from popproxy.admin.frames import CommandFailed, Reason  # noqa: PLC0415

    try:
        yield
    except CommandFailed as error:
        codes = {Reason.DENIED: ExitCode.NOPERM, Reason.INTERNAL: ExitCode.SOFTWARE, Reason.REFUSED: ExitCode.NOINPUT}
        raise CommandError(str(error), codes.get(error.reason, ExitCode.USAGE)) from None


def _socket(config: Path) -> Path:
    from popproxy.config.loader import load  # noqa: PLC0415
    from popproxy.config.model_abuse import DEFAULT_SOCKET  # noqa: PLC0415

    if config == DEFAULT_CONFIG and not os.access(config, os.R_OK):
        return DEFAULT_SOCKET  # an operator need not be able to read the configuration
    control = load(config).control
    if control.socket is None:
        text = f"{config} has no control socket; take control.socket: null out, and restart popproxy"
        raise CommandError(text, ExitCode.CONFIG)
    return control.socket
