"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_CONFIG = Path("/etc/popproxy/popproxy.yaml")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", envvar="POPPROXY_CONFIG", help="The configuration file.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
StdinOption = Annotated[
    bool, typer.Option("--stdin", help="Read the secret from the first line of standard input instead of asking.")
]
