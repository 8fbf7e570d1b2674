"""``popproxy who``, ``kick`` and ``stats``: the sessions of the running proxy."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from popproxy.admin.lines import selection
from popproxy.admin.shown import show_kicked, show_sessions, show_stats
from popproxy.cli.control import SocketOption, ask
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from popproxy.cli.output import print_json, print_lines


def who(
    which: Annotated[str, typer.Argument(metavar="[WHICH]", help="A user, an address, a network or a session.")] = "",
    config: ConfigOption = DEFAULT_CONFIG,
    socket: SocketOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Also clients that have not logged in.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List who is logged in at the running popproxy, the longest session first.

    For example:

        popproxy who

        popproxy who 192.0.2.0/24 --all

        popproxy who --json | jq '.sessions[] | select(.tls == "")'
    """
    result = ask(config, socket, "who", everything=everything, **_selection(which))
    if as_json:
        print_json(result)
    else:
        print_lines(show_sessions(result, sys.stdout.isatty()))


def kick(
    which: Annotated[str, typer.Argument(metavar="WHICH", help="A session, a user, an address or a network.")],
    config: ConfigOption = DEFAULT_CONFIG,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """End sessions at once. Nothing of theirs is deleted; who has already said QUIT is left alone.

    Their clients may log in again. Exit code 66 if there is no such session.

    For example:

        popproxy kick alice@example.com

        popproxy kick 192.0.2.7

        popproxy kick 0123456789abcdef
    """
    result = ask(config, socket, "kick", **_selection(which))
    if as_json:
        print_json(result)
        return
    print_lines(show_kicked(result))


def stats(config: ConfigOption = DEFAULT_CONFIG, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Say what the running popproxy has done since it was started, and how its servers are.

    For example:

        popproxy stats

        popproxy stats --json | jq .logins
    """
    result = ask(config, socket, "stats")
    if as_json:
        print_json(result)
        return
    print_lines(show_stats(result, sys.stdout.isatty()))


def _selection(which: str) -> dict[str, object]:
    return selection(which) if which else {}
