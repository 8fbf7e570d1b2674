"""``popproxy hold``, ``release``, ``move`` and ``orders``: one user's mail is moved while everybody works."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from popproxy.app.checks.finding import counted
from popproxy.cli.control import SocketOption, ask
from popproxy.cli.exits import CommandError, ExitCode
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from popproxy.cli.output import print_json, print_table, span

UserArgument = Annotated[str, typer.Argument(metavar="USER", help="The user, as popproxy who shows him.")]
_FORGETFUL = "process.state_directory is not set: this holds until popproxy is reloaded or started again"


def hold(
    user: UserArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    socket: SocketOption = None,
    for_: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="End it by itself after this time (30m, 2h).")
    ] = None,
    refuse: Annotated[
        bool,
        typer.Option("--refuse/--wait", help="Refuse logins at once with [SYS/TEMP], instead of letting them wait."),
    ] = False,
    end_sessions: Annotated[bool, typer.Option("--end-sessions", help="End the user's open sessions.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Let a user not log in until he is released, so that his mail can be moved.

    His logins wait, for routing.hold_wait at most, and get [SYS/TEMP] then. Sessions that are open go on, unless they
    are to end: nothing is deleted then that the client has not said QUIT for. When the hold ends, what popproxy
    remembers of the user's place is forgotten, so directories are asked again.

    For example:

        popproxy hold alice@example.com --end-sessions

        popproxy hold alice@example.com --for 1h --refuse
    """
    result = ask(config, socket, "hold", user=user, seconds=_seconds(for_), refuse=refuse, end_sessions=end_sessions)
    if as_json:
        print_json(result)
        return
    print(f"{result['user']} is held, logins {_hold(result)}")
    _sessions(result)
    if not result["kept"]:
        print(_FORGETFUL)


def release(
    user: UserArgument, config: ConfigOption = DEFAULT_CONFIG, socket: SocketOption = None, as_json: JsonOption = False
) -> None:
    """Let a user log in again who is held. Exit code 66 if he is not.

    For example:

        popproxy release alice@example.com
    """
    result = ask(config, socket, "release", user=user)
    if as_json:
        print_json(result)
    else:
        print(f"{result['user']} is released")


def move(
    user: UserArgument,
    pool: Annotated[str | None, typer.Argument(metavar="[POOL]", help="The pool where his mail is now.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    socket: SocketOption = None,
    server: Annotated[str | None, typer.Option("--server", help="One of its servers.")] = None,
    backend_user: Annotated[str | None, typer.Option("--as", metavar="NAME", help="His name there.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Undo it: rules and directories decide again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take a user's logins to another pool, whatever rules and directories say, until it is undone.

    Open sessions stay where they are; see popproxy hold. Needs process.state_directory, where it is kept.

    For example:

        popproxy move alice@example.com new --server pop2.example.net

        popproxy move alice@example.com --undo
    """
    if undo is (pool is not None) or (undo and (server or backend_user)):
        raise CommandError("name a pool, or say --undo", ExitCode.USAGE)
    if undo:
        result = ask(config, socket, "move undo", user=user)
    else:
        result = ask(config, socket, "move", user=user, pool=pool, server=server, backend_user=backend_user)
    if as_json:
        print_json(result)
    elif undo:
        print(f"{result['user']} goes where rules and directories say")
    else:
        print(f"{result['user']} goes to {_place(result)}")
        _sessions(result)


def orders(config: ConfigOption = DEFAULT_CONFIG, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """List who is held, who has been moved, and which servers are out of service.

    For example:

        popproxy orders --json | jq '.moves[] | select(.pool == "new") | .user'
    """
    result = ask(config, socket, "orders list")
    if as_json:
        print_json(result)
        return
    rows = [
        *(("hold", one["user"], f"logins {_hold(one)}", one) for one in result["holds"]),
        *(("move", one["user"], _place(one), one) for one in result["moves"]),
        *((one["state"], one["server"], f"in {one['pool']}", one) for one in result["servers"]),
    ]
    if not rows:
        print("no orders")
        return
    print_table(("order", "whom", "what", "for"), [(*row[:3], span(time.time() - row[3]["since"])) for row in rows])
    if result["waiting"]:
        print(f"{counted(result['waiting'], 'login')} waiting")
    if not result["kept"]:
        print(_FORGETFUL)


_LOGINS = {"wait": "wait", "refused": "are refused"}


def _seconds(text: str | None) -> float | None:
    from popproxy.config.units import parse_duration  # noqa: PLC0415

    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise CommandError(f"--for: {error}", ExitCode.USAGE) from None


def _hold(hold: dict[str, Any]) -> str:
    until = "" if hold["until"] is None else f" for {span(hold['until'] - time.time())}"
    return f"{_LOGINS[hold['logins']]}{until}"


def _place(move: dict[str, Any]) -> str:
    server = "" if move["server"] is None else f", server {move['server']}"
    name = "" if move["backend_user"] is None else f", as {move['backend_user']}"
    return f"pool {move['pool']}{server}{name}"


def _sessions(result: dict[str, Any]) -> None:
    if result["ended"]:
        print(f"{counted(len(result['ended']), 'session')} ended")
    if result["open"]:
        print(f"{counted(len(result['open']), 'session')} still open: {', '.join(result['open'])}")
