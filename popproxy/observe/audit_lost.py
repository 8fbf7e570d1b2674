"""Sessions that have logged in and have no end: which were lost with their process, and what was pending. Pure.

A process that is killed writes nothing any more. Its supervisor has ``worker_lost`` written, which names the segment;
if that has died as well, only an ``audit_stop`` that is missing tells of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from popproxy.observe.audit_query import Record

ACTIONS: Final = frozenset(
    ("login", "dele", "rset", "update", "session_end", "audit_start", "audit_rotate", "audit_stop", "worker_lost")
)
"""Of the records that matter."""
OPEN: Final = 100_000
"""Sessions that are remembered at a time; those beyond are only counted."""
MESSAGES: Final = 100
"""Messages of one session that are named."""


@dataclass(slots=True)
class Lost:
    """A session without an end. Times as in ``@timestamp``; `when` is that of ``worker_lost``, "" if there is none."""

    session: str
    user: str
    address: str
    port: int
    segment: str
    login: str
    latest: str
    """Its last record."""
    server: str
    marked: int = 0
    """Messages that it had marked as deleted: undone, unless QUIT was under way."""
    messages: list[dict[str, object]] = field(default_factory=list)
    """The first of them: `number`, and `unique_id` where it is known."""
    update: str = ""
    """What is on record of its QUIT: success, failure or unknown."""
    when: str = ""
    worker: str = ""
    pid: int = 0
    why: str = ""


class LostSessions:
    """Takes the records of all files, the oldest first. It grows with the sessions that are open at a time."""

    def __init__(self) -> None:
        self.left_out = 0
        """Logins beyond OPEN, of which nothing is known."""
        self._open: dict[str, dict[str, Lost]] = {}  # by segment, then by session
        self._count = 0
        self._origins: dict[str, tuple[int, str, str]] = {}  # of segments that go on: process, its identity and name

    def take(self, record: Record) -> Iterator[Lost]:
        """The next record; the sessions that it says are lost."""
        action, segment = record["event.action"], str(record.get("chain.segment"))
        if action == "worker_lost":
            yield from self._lost_with(record)
        elif action in ("audit_start", "audit_rotate"):
            pid, identity, name = (record.get(f"process.{key}") for key in ("pid", "entity_id", "name"))
            self._origins[segment] = pid if isinstance(pid, int) else 0, str(identity), str(name or "popproxy")
        elif action == "audit_stop":
            self._origins.pop(segment, None)
            self._close(segment)
        elif action == "login":
            self._begin(segment, record)
        else:
            self._go_on(segment, record)

    def finish(self, runs: Callable[[int, str], bool]) -> Iterator[Lost]:
        """Those of segments that end without a word. Does a process of this number and identity run?"""
        for segment in list(self._open):
            pid, identity, name = self._origins.get(segment, (0, "", ""))
            if pid and runs(pid, identity):
                continue
            for lost in self._close(segment):
                lost.worker, lost.pid = name, pid
                yield lost

    # ---- pieces ----

    def _begin(self, segment: str, record: Record) -> None:
        if record.get("event.outcome") != "success":
            return
        if self._count >= OPEN:
            self.left_out += 1
            return
        port = record.get("source.port")
        session = str(record.get("session.id"))
        known = self._open.setdefault(segment, {})
        self._count += session not in known
        known[session] = Lost(
            session, str(record.get("user.name")), str(record.get("source.ip")), port if isinstance(port, int) else 0,
            segment, str(record["@timestamp"]), str(record["@timestamp"]),
            f"{record.get('destination.address')}:{record.get('destination.port')}",
        )  # fmt: skip

    def _go_on(self, segment: str, record: Record) -> None:
        sessions = self._open.get(segment, {})
        lost = sessions.get(str(record.get("session.id")))
        if lost is None:
            return
        lost.latest = str(record["@timestamp"])
        action, outcome = record["event.action"], str(record.get("event.outcome"))
        if action == "session_end":
            del sessions[lost.session]
            self._count -= 1
            if not sessions:
                del self._open[segment]
        elif action == "update":
            lost.update = outcome
        elif action == "rset":
            lost.marked, lost.messages = 0, []
        elif outcome == "success":
            lost.marked += 1
            named = (("number", "pop3.message_number"), ("unique_id", "pop3.unique_id"))
            if len(lost.messages) < MESSAGES:
                lost.messages.append({short: record[name] for short, name in named if name in record})

    def _lost_with(self, record: Record) -> Iterator[Lost]:
        segment, pid = str(record.get("popproxy.lost.segment")), record.get("process.pid")
        self._origins.pop(segment, None)
        for lost in self._close(segment):
            lost.when, lost.why = str(record["@timestamp"]), str(record.get("message"))
            lost.worker, lost.pid = str(record.get("process.name")), pid if isinstance(pid, int) else 0
            yield lost

    def _close(self, segment: str) -> list[Lost]:
        """The sessions that are open there, which are none from now on."""
        sessions = list(self._open.pop(segment, {}).values())
        self._count -= len(sessions)
        return sessions
