"""``popproxy serve``."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import typer

from popproxy.cli.exits import complain
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on uvloop where there is one, else on asyncio."""
    import asyncio  # noqa: PLC0415

    try:
        import uvloop  # noqa: PLC0415 - slow, and not everywhere
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def serve(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the proxy in the foreground until SIGTERM or SIGINT.

    It binds the ports, becomes the user of process.user, and lets running sessions end when it is told to stop (for as
    long as timeouts.drain). Log lines go to standard error; the audit log goes where audit.file says.

    For example:

        popproxy serve -c /etc/popproxy/popproxy.yaml

        systemctl start popproxy
    """
    from popproxy.app.hardening import keep_memory  # noqa: PLC0415

    keep_memory()
    from popproxy.config.loader import load_file  # noqa: PLC0415

    loaded = load_file(config)
    from popproxy.app import service  # noqa: PLC0415

    complain([f"warning: {text}" for text in map(str, loaded.warnings)])
    raise typer.Exit(run(service.serve(loaded)))
