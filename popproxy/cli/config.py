"""``popproxy config``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from popproxy.cli.output import print_json

app = typer.Typer(no_args_is_help=True, help="Look at the configuration, and at what may stand in it.")


@app.command()
def schema(
    older: Annotated[
        bool, typer.Option("--draft-07", help="For programs that know draft-07 only, such as Helm.")
    ] = False,
) -> None:
    """Print the JSON Schema of the configuration file: for editors that complete and check while you type.

    For example:

        popproxy config schema > popproxy.schema.json

        # then, as first line of popproxy.yaml:

        # yaml-language-server: $schema=popproxy.schema.json
    """
    from popproxy.config.schema import draft_07, json_schema  # noqa: PLC0415

    print_json(draft_07(json_schema()) if older else json_schema())


@app.command()
def show(
    config: ConfigOption = DEFAULT_CONFIG,
    changed: Annotated[bool, typer.Option("--changed", help="Only what differs from the defaults.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the configuration as popproxy understands it, every default included. No secret is printed.

    For example:

        popproxy config show

        popproxy config show --changed -c popproxy.yaml

        popproxy config show --json | jq .timeouts
    """
    from popproxy.config.loader import load_file  # noqa: PLC0415
    from popproxy.config.show import show as render  # noqa: PLC0415

    text = render(load_file(config).config, changed)
    if as_json:
        import yaml  # noqa: PLC0415

        print_json(yaml.safe_load(text) or {})
    else:
        sys.stdout.write(text)
