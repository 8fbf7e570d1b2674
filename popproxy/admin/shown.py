"""What commands have answered, as lines for people; the same at the command line and at the console."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from popproxy.admin.tables import printable, span, table

_COUNTED = ("sessions", "logins", "messages", "octets", "deletions", "updates")
_SCOPES = {
    "address": "address", "network": "network", "user_address": "user from address", "account": "user",
    "total": "everybody",
}  # fmt: skip


def show_sessions(result: Mapping[str, Any], fancy: bool = False) -> list[str]:
    """Of ``who``."""
    heads = ("session", "user", "address", "listener", "mechanism", "tls", "server", "for", "in", "out")
    rows = [
        (
            session["id"], session["user"] or "-", session["address"], session["listener"], session["mechanism"] or "-",
            session["tls"] or "-", session["backend"] or "-", span(session["seconds"]),
            str(session["octets"]["from_client"]), str(session["octets"]["to_client"]),
        )
        for session in result["sessions"]
    ]  # fmt: skip
    return table(heads, rows, fancy=fancy) if rows else ["no sessions"]


def show_kicked(result: Mapping[str, Any], fancy: bool = False) -> list[str]:
    """Of ``kick``."""
    lines = [f"{_counted(len(result['kicked']), 'session')} ended"]
    if result["in_update"]:
        lines.append(f"{_counted(len(result['in_update']), 'session')} left alone: the server is answering QUIT")
    return lines


def show_stats(result: Mapping[str, Any], fancy: bool = False) -> list[str]:
    """Of ``stats``."""
    rows = [
        ("running for", span(result["seconds"])), ("version", result["version"]),
        *((what, _counts(result[what])) for what in _COUNTED),
        ("connections", f"{result['connections']:.0f}"),
        ("audit log", "written" if result["audit"]["healthy"] else "CANNOT BE WRITTEN"),
        ("audit records lost", f"{result['audit']['dropped']:.0f}"),
        ("state shared by", _shared(result["shared"])),
    ]  # fmt: skip
    servers = [
        (label, "reached" if backend["up"] else "not reached", f"{backend['sessions']:.0f}")
        for label, backend in result["backends"].items()
    ]
    heads = ("server", "latest attempt", "sessions")
    return [*table(("what", "since the start"), rows, fancy=fancy), "", *table(heads, servers, fancy=fancy)]


def show_backends(result: Mapping[str, Any], fancy: bool = False) -> list[str]:
    """Of the commands about servers."""
    heads = ("pool", "server", "state", "for", "sessions", "limit", "weight", "why")
    lines = table(heads, [_backend(one) for one in result["backends"]], fancy=fancy)
    return lines + [f"{logins} waiting for a place in {pool}" for pool, logins in result.get("waiting", {}).items()]


def _backend(backend: Mapping[str, Any]) -> tuple[str, ...]:
    since, limit = backend["since"], backend["limit"]
    return (
        backend["pool"], backend["server"], backend["state"], "" if since is None else span(time.time() - since),
        str(round(backend["sessions"])), "" if limit is None else str(limit), str(backend["weight"]), backend["why"],
    )  # fmt: skip


def show_penalties(result: Mapping[str, Any], fancy: bool = False) -> list[str]:
    """Of ``penalties list``, if there are any."""
    rows = [
        (
            _SCOPES[one["scope"]], one["user"], one["address"], f"{one['level']:.1f}", str(one["limit"]),
            f"{span(one['age'])} ago", span(one["seconds"]) if one["seconds"] else "",
        )
        for one in result["penalties"]
    ]  # fmt: skip
    if not rows:
        return ["nobody is slowed down"]
    lines = table(("what", "user", "address", "wrong", "free", "latest", "slowed for"), rows, fancy=fancy)
    more = result["total"] - len(rows)
    return [*lines, f"and {more} more"] if more > 0 else lines


def show_cleared(result: Mapping[str, Any], fancy: bool = False) -> list[str]:
    """Of ``penalties clear``."""
    return [f"{_counted(result['cleared'], 'counter')} cleared"]


def show_anything(result: Any, fancy: bool = False) -> list[str]:
    """Of a command that nobody has written a table for: lists of objects as tables, the rest line by line."""
    if not isinstance(result, dict):
        return [printable(str(result))]
    lines = []
    for name, value in result.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            heads = list(value[0])
            lines += table(heads, [[_cell(row.get(head)) for head in heads] for row in value], fancy=fancy)
        else:
            lines.append(f"{name.replace('_', ' ')}: {printable(_cell(value))}")
    return lines or ["done"]


SHOWN: dict[str, Callable[[Any, bool], list[str]]] = {
    "who": show_sessions, "kick": show_kicked, "stats": show_stats, "backends list": show_backends,
    "backends drain": show_backends, "backends maintenance": show_backends, "backends resume": show_backends,
    "penalties list": show_penalties, "penalties clear": show_cleared,
}  # fmt: skip


def _shared(shared: Mapping[str, Any]) -> str:
    processes = f"{shared['members']:.0f} process{'' if shared['members'] == 1 else 'es'}"
    return processes if shared["up"] else f"NOBODY NOW, {processes} before: each goes by its share of the limits"


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items())
    return "-" if value is None or value == "" else str(value)


def _counts(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{count:.0f} {name.replace('_', ' ')}" for name, count in counts.items())


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
