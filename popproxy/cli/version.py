"""``popproxy version``."""

from __future__ import annotations

import platform

import typer

from popproxy import __version__
from popproxy.cli.options import JsonOption
from popproxy.cli.output import print_json


def version(as_json: JsonOption = False) -> None:
    """Print the version of popproxy, and with --json those of Python and OpenSSL.

    For example:

        popproxy version

        popproxy version --json
    """
    if not as_json:
        print(f"popproxy {__version__}")
        return
    import ssl  # noqa: PLC0415 - slow, and needed here only

    print_json({"popproxy": __version__, "python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION})


def asked(wanted: bool) -> None:
    """The option that people try first: the same line, and nothing else is done. Raises typer.Exit."""
    if wanted:
        version()
        raise typer.Exit
