"""The command ``top``: everything at a glance, again and again. It only asks the other commands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from popproxy.admin.commands import Commands, Executor, Role
from popproxy.admin.frames import CommandFailed, Reason

SORTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "octets": lambda session: -session["octets"]["to_client"] - session["octets"]["from_client"],
    "rate": lambda session: -session["rate"],
    "time": lambda session: -session["seconds"],
    "user": lambda session: (session["user"], -session["seconds"]),
    "address": lambda session: (session["address"], -session["seconds"]),
    "server": lambda session: (session["backend"], -session["seconds"]),
}
"""What sessions can be sorted by, the greatest first where it is a number."""
MOST = 500
"""Sessions in one answer."""


def add_top(commands: Commands, executor: Executor) -> None:
    """Add the command, which asks `executor` for ``stats``, ``backends list`` and ``who``."""

    async def top(
        *, sort: str = "rate", limit: int = 50, seconds: float | int = 2, times: int = 0
    ) -> AsyncGenerator[object, None]:
        if sort not in SORTS:
            raise CommandFailed(Reason.BAD_ARGUMENTS, f"sorted by one of {', '.join(SORTS)}")
        if not (0.2 <= seconds <= 3600 and 0 <= limit <= MOST and times >= 0):
            raise CommandFailed(Reason.BAD_ARGUMENTS, f"every 0.2 to 3600 seconds, and {MOST} sessions at most")
        before: tuple[float, dict[str, Any]] | None = None
        count = 0
        while True:
            snapshot = await look(executor)
            now = time.monotonic()
            _add_rates(snapshot, before, now)
            before = now, snapshot
            shown = sorted(snapshot["sessions"], key=SORTS[sort])[:limit]
            yield {**snapshot, "sessions": shown, "total": len(snapshot["sessions"]), "sort": sort}
            count += 1
            if count == times:
                return
            await asyncio.sleep(seconds)

    commands.add("top", top, Role.VIEWER)


async def look(executor: Executor) -> dict[str, Any]:
    """One look: ``stats``, ``backends`` with ``waiting``, ``sessions``, and ``at``, in seconds since 1970."""
    stats: Any = await executor.execute("stats", {})
    backends: Any = await executor.execute("backends list", {})
    who: Any = await executor.execute("who", {})
    return {"at": time.time(), "stats": stats, **backends, "sessions": who["sessions"]}


def _add_rates(snapshot: dict[str, Any], before: tuple[float, dict[str, Any]] | None, now: float) -> None:
    """Octets a second of each session since the last look, and of everything together; logins a second."""
    then, last = before or (now, snapshot)
    span = max(now - then, 0.001)
    moved = {session["id"]: sum(session["octets"].values()) for session in last["sessions"]}
    for session in snapshot["sessions"]:
        octets = sum(session["octets"].values())
        session["rate"] = max(0, round((octets - moved.get(session["id"], octets if before is None else 0)) / span))
    rates = {}
    for what in ("octets", "logins", "messages"):
        grown = sum(snapshot["stats"][what].values()) - sum(last["stats"][what].values())
        rates[what] = max(0.0, round(grown / span, 1))
    snapshot["rates"] = rates
