"""``popproxy penalties``: who is slowed down for wrong passwords."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from popproxy.admin.lines import is_network
from popproxy.admin.shown import show_cleared, show_penalties
from popproxy.cli.control import SocketOption, ask
from popproxy.cli.exits import CommandError, ExitCode
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from popproxy.cli.output import print_json, print_lines

app = typer.Typer(
    no_args_is_help=True,
    help="""Look at what popproxy has counted against guessers, and forgive.

    These commands go to the running popproxy through its control socket.""",
)


@app.command("list")
def list_(
    config: ConfigOption = DEFAULT_CONFIG,
    socket: SocketOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what is counted, but not slowed down.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List who is slowed down, and for how long if nothing else happens.

    A user is slowed down only at addresses that were wrong about him lately; an address from which he has logged in is
    not among them.

    For example:

        popproxy penalties list

        popproxy penalties list --all --json | jq '.penalties[] | select(.user == "alice")'
    """
    result = ask(config, socket, "penalties list", everything=everything)
    if as_json:
        print_json(result)
        return
    if everything and not result["penalties"]:
        print("nothing is counted")
    else:
        print_lines(show_penalties(result, sys.stdout.isatty()))


@app.command()
def clear(
    who: Annotated[str, typer.Argument(metavar="[WHO]", help="A user, an address or a network.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    socket: SocketOption = None,
    address: Annotated[str | None, typer.Option("--from", help="With a user: only what comes from there.")] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Forgive everybody.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Forget what is counted against a user, an address or a network.

    For example:

        popproxy penalties clear alice@example.com

        popproxy penalties clear 192.0.2.0/24

        popproxy penalties clear alice@example.com --from 192.0.2.7
    """
    if bool(who) is everybody or (address is not None and not who):
        raise CommandError("name a user, an address or a network, or say --all", ExitCode.USAGE)
    arguments: dict[str, Any] = {"everybody": True} if everybody else {"network": who} if is_network(who) else {}
    if not arguments:
        arguments = {"user": who} if address is None else {"user": who, "network": address}
    result = ask(config, socket, "penalties clear", **arguments)
    if as_json:
        print_json(result)
    else:
        print_lines(show_cleared(result))
