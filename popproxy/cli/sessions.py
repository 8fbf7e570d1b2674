"""``popproxy who``, ``kick`` and ``stats``: the sessions of the running proxy."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any

import typer

from popproxy.app.checks.finding import counted
from popproxy.cli.control import SocketOption, ask
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from popproxy.cli.output import print_json, print_table, span

_COUNTED = ("sessions", "logins", "messages", "octets", "deletions", "updates")
_HEADS = ("session", "user", "address", "listener", "mechanism", "tls", "server", "for", "in", "out")


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
    elif result["sessions"]:
        print_table(_HEADS, [_row(session) for session in result["sessions"]])
    else:
        print("no sessions")


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
    print(f"{counted(len(result['kicked']), 'session')} ended")
    if result["in_update"]:
        print(f"{counted(len(result['in_update']), 'session')} left alone: the server is answering QUIT")


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
    print_table(("what", "since the start"), [
        ("running for", span(result["seconds"])), ("version", result["version"]),
        *((what, _counts(result[what])) for what in _COUNTED),
        ("connections", f"{result['connections']:.0f}"),
        ("audit log", "written" if result["audit"]["healthy"] else "CANNOT BE WRITTEN"),
        ("audit records lost", f"{result['audit']['dropped']:.0f}"),
        ("state shared by", _shared(result["shared"])),
    ])  # fmt: skip
    print()
    print_table(("server", "latest attempt", "sessions"), [
        (label, "reached" if backend["up"] else "not reached", f"{backend['sessions']:.0f}")
        for label, backend in result["backends"].items()
    ])  # fmt: skip


def _selection(which: str) -> dict[str, str]:
    if not which:
        return {}
    try:
        ipaddress.ip_network(which, strict=False)
    except ValueError:
        return {"session" if re.fullmatch("[0-9a-f]{16}", which) else "user": which}
    return {"network": which}


def _row(session: dict[str, Any]) -> tuple[str, ...]:
    octets = session["octets"]
    return (
        session["id"], session["user"] or "-", session["address"], session["listener"], session["mechanism"] or "-",
        session["tls"] or "-", session["backend"] or "-", span(session["seconds"]), str(octets["from_client"]),
        str(octets["to_client"]),
    )  # fmt: skip


def _shared(shared: dict[str, Any]) -> str:
    processes = f"{shared['members']:.0f} process{'' if shared['members'] == 1 else 'es'}"
    return processes if shared["up"] else f"NOBODY NOW, {processes} before: each goes by its share of the limits"


def _counts(counts: dict[str, float]) -> str:
    return ", ".join(f"{count:.0f} {name.replace('_', ' ')}" for name, count in counts.items())
