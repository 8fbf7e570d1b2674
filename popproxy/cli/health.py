"""``popproxy health``."""

from __future__ import annotations

from typing import Annotated

import typer

from popproxy.cli.exits import CommandError, ExitCode
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption


def health(
    config: ConfigOption = DEFAULT_CONFIG,
    ready: Annotated[bool, typer.Option("--ready", help="Also ask whether new sessions can be served.")] = False,
) -> None:
    """Ask the running popproxy how it is, at http.listen of its configuration: for a container's HEALTHCHECK.

    Exit code 0 if it is alive, and with --ready if it serves new sessions; 69 if not, with the reasons.

    For example:

        popproxy health

        popproxy health --ready || popproxy stats
    """
    from popproxy.admin.health import ask  # noqa: PLC0415
    from popproxy.config.loader import load_file  # noqa: PLC0415

    listen = load_file(config).config.http.listen
    if listen is None:
        raise CommandError("http.listen is null, so there is nobody to ask; give it an address", ExitCode.CONFIG)
    well, words = ask(listen, "/readyz" if ready else "/livez")
    if not well:
        raise CommandError(words, ExitCode.UNAVAILABLE)
    print(words)
