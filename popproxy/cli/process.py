"""``popproxy reload`` and ``popproxy drain``: the processes of a running popproxy."""

from __future__ import annotations

from popproxy.app.checks.finding import counted
from popproxy.cli.control import SocketOption, ask
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from popproxy.cli.output import print_json


def reload(config: ConfigOption = DEFAULT_CONFIG, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Have the running popproxy read its configuration again, with certificates, keytabs and all other files.

    New workers start with it beside the old ones and take over when they are ready; sessions go on in the old ones, for
    as long as timeouts.reload. No connection is refused. If anything is wrong with it, everything stays as it was, each
    problem is told, and the exit code is 66. process.user and process.group change with a restart only.

    For example:

        popproxy check && popproxy reload
    """
    result = ask(config, socket, "reload")
    if as_json:
        print_json(result)
    else:
        print(f"serving with the new configuration (generation {result['generation']})")


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
