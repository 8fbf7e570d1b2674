"""``popproxy backends``: the servers behind a running popproxy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from popproxy.admin.shown import show_backends
from popproxy.cli.control import SocketOption, ask
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from popproxy.cli.output import print_json, print_lines

app = typer.Typer(
    no_args_is_help=True,
    help="""Look at the servers behind, and take them out of service.

    These commands go to the running popproxy through its control socket. What they order holds until it is undone, if
    process.state_directory is set; otherwise until popproxy is reloaded or started again.""",
)

ServerArgument = Annotated[str, typer.Argument(metavar="SERVER", help="As list shows it; the port may be left out.")]
PoolOption = Annotated[str | None, typer.Option("--pool", help="In this pool alone; in all that have it by default.")]


@app.command("list")
def list_(config: ConfigOption = DEFAULT_CONFIG, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """List all servers with their states and sessions.

    up: logins go there. down: failures have shown that it does not work; others are tried first, and popproxy asks it
    until it answers. drain, maintenance: ordered by an operator.

    For example:

        popproxy backends list --json | jq '.backends[] | select(.state == "down")'
    """
    result = ask(config, socket, "backends list")
    if as_json:
        print_json(result)
        return
    print_lines(show_backends(result, sys.stdout.isatty()))


@app.command()
def drain(
    server: ServerArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    socket: SocketOption = None,
    pool: PoolOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send no more logins to a server. Open sessions go on; it is still asked whether it works.

    Where maildrops are not shared, its users get [SYS/TEMP].

    For example:

        popproxy backends drain pop1.example.net
    """
    _order("drain", server, config, socket, pool, as_json)


@app.command()
def maintenance(
    server: ServerArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    socket: SocketOption = None,
    pool: PoolOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send no more logins to a server, and do not ask it either. Open sessions go on as long as they can.

    For example:

        popproxy backends maintenance pop1.example.net --pool new
    """
    _order("maintenance", server, config, socket, pool, as_json)


@app.command()
def resume(
    server: ServerArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    socket: SocketOption = None,
    pool: PoolOption = None,
    as_json: JsonOption = False,
) -> None:
    """Use a server again after drain or maintenance.

    For example:

        popproxy backends resume pop1.example.net
    """
    _order("resume", server, config, socket, pool, as_json)


def _order(order: str, server: str, config: Path, socket: Path | None, pool: str | None, as_json: bool) -> None:
    result = ask(config, socket, f"backends {order}", server=server, pool=pool)
    if as_json:
        print_json(result)
    else:
        print_lines(show_backends(result, sys.stdout.isatty()))
