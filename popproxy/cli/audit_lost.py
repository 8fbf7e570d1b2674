"""``popproxy audit lost``: which sessions have no end, because their process has died."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from popproxy.app.checks.finding import counted
from popproxy.cli.audit_logs import FilesArgument, log_files, progress, runs_here
from popproxy.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from popproxy.cli.output import print_json, print_table, printable

if TYPE_CHECKING:
    from popproxy.observe.audit_lost import Lost

KEPT = 10_000
"""As many sessions are listed; beyond, they are counted."""


def lost(files: FilesArgument = None, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List the sessions that were lost with their process: who, from where, and what was marked as deleted.

    Each session ends with a record, session_end, unless its process is killed. What it had marked as deleted then is
    undone by the server, unless QUIT was under way: the server's own log says more. Sessions of processes that run on
    this machine are not listed.

    For example:

        popproxy audit lost

        popproxy audit lost --json | jq -r '.sessions[] | select(.marked > 0) | .user'
    """
    from popproxy.observe.audit_files import lines  # noqa: PLC0415
    from popproxy.observe.audit_lost import ACTIONS, LostSessions  # noqa: PLC0415
    from popproxy.observe.audit_query import NotARecord, Query  # noqa: PLC0415

    query, sessions = Query(actions=ACTIONS), LostSessions()
    found: list[Lost] = []
    more = 0

    def keep(lost: Iterable[Lost]) -> None:
        nonlocal more
        for one in lost:
            if len(found) < KEPT:
                found.append(one)
            else:
                more += 1

    with log_files(files, config) as found_files:
        for file in found_files:
            for line in lines(file, progress()):
                try:
                    record = query.take(line)
                except NotARecord:
                    continue  # verify tells of it
                if record is not None:
                    keep(sessions.take(record))
    keep(sessions.finish(runs_here))
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if as_json:
        print_json({"sessions": [asdict(one) for one in found], "more": more, "left_out": sessions.left_out})
        return
    if not found:
        print("no session is without its end")
    else:
        print_table(
            ("login", "latest", "user", "from", "session", "server", "worker", "pending"),
            [(one.login[:19], one.latest[:19], one.user, f"{one.address}:{one.port}", one.session, one.server,
              _worker(one), pending(one))
             for one in found],
        )  # fmt: skip
    if more:
        print(f"and {more} more")
    if sessions.left_out:
        print(f"and {counted(sessions.left_out, 'login')} at times with too many sessions to be remembered")


def pending(one: Lost) -> str:
    """What was begun, and whose end is not on record."""
    if one.update:
        return f"QUIT: {one.update}"
    return f"{counted(one.marked, 'message')} marked as deleted" if one.marked else "nothing"


def _worker(one: Lost) -> str:
    return printable(f"{one.worker} ({one.pid}) {one.why or 'ended without a word'}")
