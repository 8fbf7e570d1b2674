"""``popproxy reload`` and ``popproxy drain``: the processes of a running popproxy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from popproxy.app.checks.finding import counted
from popproxy.app.effects import Effect, described
from popproxy.cli.control import SocketOption, ask
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from popproxy.cli.output import print_json


def reload(config: ConfigOption = DEFAULT_CONFIG, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Have the running popproxy read its configuration again, with certificates, keytabs and all other files.

    New workers start with it beside the old ones and take over when they are ready; sessions go on in the old ones, for
    as long as timeouts.reload. No connection is refused. If anything is wrong with it, everything stays as it was, each
    problem is told, and the exit code is 66.

    What has changed in the file is listed: what holds now, what for new sessions only, and what needs a restart, which
    are process.user and process.group. Values are shown where they tell no name, address of a server or text.

    For example:

        popproxy check && popproxy reload
    """
    result = ask(config, socket, "reload")
    if as_json:
        print_json(result)
    else:
        print(f"serving with the new configuration (generation {result['generation']})")
        for line in _what_changed(result["changes"]):
            print(line)
        for warning in result["warnings"]:
            print(f"warning: {warning}")


def _what_changed(changes: list[dict[str, Any]] | None) -> Iterator[str]:
    if changes is None:
        yield "the earlier configuration is of another version: what has changed is not known"
    elif not changes:
        yield "nothing has changed in it; certificates, keytabs, users, routes and all other files are read anew"
    for effect in Effect:
        lines = [described(change) for change in changes or () if change["effect"] == effect]
        if lines:
            yield f"{effect.words}:"
            yield from (f"  {line}" for line in lines)


def drain(config: ConfigOption = DEFAULT_CONFIG, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """End the running popproxy as SIGTERM does: no new clients, sessions may finish.

    What is left after timeouts.drain is ended, and nothing of theirs is deleted. /readyz says 503 meanwhile.

    For example:

        popproxy drain
    """
    result = ask(config, socket, "drain")
    if as_json:
        print_json(result)
    else:
        print(f"draining: {counted(result['sessions'], 'session')}, {result['seconds']:g} s at most")
