"""``popproxy reload``, ``upgrade`` and ``drain``: the processes of a running popproxy."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from popproxy.app.checks.finding import counted
from popproxy.app.effects import Effect, described
from popproxy.cli.control import SocketOption, ask
from popproxy.cli.exits import CommandError, ExitCode
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from popproxy.cli.output import print_json
from popproxy.errors import Unavailable

_PATIENCE = 30.0
"""Seconds for the supervisor to replace its program."""
_POLL = 0.3


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
        _print_effects(result)


def _print_effects(result: dict[str, Any]) -> None:
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


def upgrade(config: ConfigOption = DEFAULT_CONFIG, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Have the running popproxy become the version that is installed now, without a refused connection.

    First it tries whether that version can be loaded and takes over, then new workers start with it and with the
    configuration as it is now, as after a reload; sessions go on in the old ones. In the end the supervisor replaces
    its own program, and keeps its process id, its sockets and all that has been counted. If anything is wrong,
    everything stays as it was, each problem is told, and the exit code is 66.

    For example:

        pip install --upgrade popproxy && popproxy check && popproxy upgrade
    """
    result = ask(config, socket, "upgrade")
    if not _replaced(config, socket, result["upgrades"]):
        text = "the new workers serve, but the supervisor has kept its version; its log says why"
        raise CommandError(text, ExitCode.UNAVAILABLE)
    if as_json:
        print_json(result)
    else:
        print(
            f"serving with popproxy {result['version']}, before {result['before']} (generation {result['generation']})"
        )
        _print_effects(result)


def _replaced(config: Path, socket: Path | None, upgrades: int) -> bool:
    """Has the supervisor replaced its program, for that many times now? It waits for that."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(Unavailable):  # it is at it
            if ask(config, socket, "version")["upgrades"] >= upgrades:
                return True
        time.sleep(_POLL)
    return False


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
