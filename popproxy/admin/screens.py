"""What ``top`` and ``trace`` look like on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from popproxy.admin.tables import BOLD, DIM, GREEN, RED, YELLOW, printable, size, span, styled, table

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The other screen of a terminal, without a cursor; and back."""
_STATES = {"up": GREEN, "down": RED, "drain": YELLOW, "maintenance": YELLOW}
_SIDES = {"client": "C: ", "server": "S: ", "note": "-- "}


def top_screen(snapshot: Mapping[str, Any], *, fancy: bool, width: int = 0, height: int = 0) -> list[str]:
    """One look as lines; no more and no longer ones than fit into `width` and `height`, if they are not 0."""
    stats, rates = snapshot["stats"], snapshot["rates"]
    sessions = stats["sessions"]
    clock = datetime.fromtimestamp(snapshot["at"], UTC).strftime("%H:%M:%S UTC")
    audit = stats["audit"]["healthy"]
    plain = [
        f"popproxy {stats['version']}, up {span(stats['seconds'])}, {clock}",
        f"{sessions['transaction']:.0f} sessions, {sessions['authorization']:.0f} logging in, "
        f"{sessions['update']:.0f} in UPDATE",
        f"{rates['logins']:g} logins/s, {rates['messages']:g} messages/s, {size(rates['octets'])} octets/s",
        "logins: " + ", ".join(f"{count:.0f} {outcome}" for outcome, count in stats["logins"].items()),
        "audit log: " + ("written" if audit else "CANNOT BE WRITTEN")
        + "".join(f"; {waiting} waiting for a place in {pool}" for pool, waiting in snapshot["waiting"].items()),
    ]  # fmt: skip
    styles = [BOLD, "", "", "", "" if audit else RED]
    heads = ("server", "state", "for", "sessions", "why")
    servers = [(one["server"], one["state"], _since(one, snapshot["at"]), f"{one['sessions']:.0f}", one["why"])
               for one in snapshot["backends"]]  # fmt: skip
    plain += ["", *table(heads, servers)]
    styles += ["", BOLD, *(_STATES.get(one["state"], "") for one in snapshot["backends"])]
    heads_of_sessions = ("session", "user", "address", "mechanism", "tls", "server", "for", "in", "out", "octets/s")
    rows = [_session(one) for one in snapshot["sessions"]]
    room = max(0, height - len(plain) - 3) if height else len(rows)
    plain += ["", *table(heads_of_sessions, rows[:room])]
    styles += ["", BOLD, *([""] * len(rows[:room]))]
    if snapshot["total"] > len(rows[:room]):
        plain.append(f"and {snapshot['total'] - len(rows[:room])} more, by {snapshot['sort']}")
        styles.append(DIM)
    cut = [line[:width] if width else line for line in plain[: height or len(plain)]]
    return [styled(line, style, fancy and bool(style)) for line, style in zip(cut, styles, strict=False)]


def repaint(lines: list[str]) -> str:
    """What puts `lines` on the screen in place of what was there, without a flicker."""
    return "\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J"


def trace_lines(event: Mapping[str, Any], *, fancy: bool) -> list[str]:
    """One event of a trace."""
    kind = event["kind"]
    if kind == "begin":
        count = len(event["sessions"])
        running = f"{count} running session{'' if count == 1 else 's'}" if count else "no running session"
        return [styled(f"-- tracing {printable(event['user'])} for {span(event['seconds'])}, {running}", DIM, fancy)]
    at = datetime.fromisoformat(event["at"]).strftime("%H:%M:%S.%f")[:-3]
    text = printable(event["text"]) or f"({event['octets']} octets)"
    where = f"{event['session']} {event['address']}  " if "session" in event else ""
    return [f"{styled(f'{at}  {where}', DIM, fancy)}{_SIDES[kind]}{text}"]


def _since(backend: Mapping[str, Any], now: float) -> str:
    return "" if backend["since"] is None else span(now - backend["since"])


def _session(session: Mapping[str, Any]) -> tuple[str, ...]:
    octets = session["octets"]
    return (
        session["id"], session["user"] or "-", session["address"], session["mechanism"] or "-", session["tls"] or "-",
        session["backend"] or "-", span(session["seconds"]), size(octets["from_client"]), size(octets["to_client"]),
        size(session["rate"]),
    )  # fmt: skip
