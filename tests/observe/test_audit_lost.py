"""Sessions without an end: found whatever has happened, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from popproxy.observe import audit_lost
from popproxy.observe.audit_lost import Lost, LostSessions


class Log:
    """Records of several processes, one after the other."""

    def __init__(self) -> None:
        self.sessions = LostSessions()
        self.lost: list[Lost] = []
        self._time = 0

    def says(self, segment: str, action: str, session: str = "", outcome: str = "success", **fields: Any) -> None:
        self._time += 1
        record = {
            "@timestamp": f"2026-01-01T00:00:{self._time:02}.000001Z", "event.action": action, "event.outcome": outcome,
            "chain.segment": segment, **{name.replace("__", "."): value for name, value in fields.items()},
        }  # fmt: skip
        if session:
            record |= {"session.id": session, "user.name": session.partition("-")[0], "source.ip": "192.0.2.7"}
        self.lost += self.sessions.take(record)

    def starts(self, segment: str, pid: int) -> None:
        self.says(segment, "audit_start", process__entity_id="here", process__pid=pid)

    def ends(self, *running: int) -> list[str]:
        self.lost += self.sessions.finish(lambda pid, identity: identity == "here" and pid in running)
        return [one.session for one in self.lost]


def test_what_was_pending_when_a_worker_died_is_told() -> None:
    log = Log()
    log.starts("a", 1)
    log.starts("b", 2)
    for session in ("alice-1", "bob-1", "carol-1", "dave-1"):
        log.says("a", "login", session)
    log.says("b", "login", "erin-1")
    log.says("b", "dele", "erin-1", pop3__message_number=1)
    log.says("a", "session_end", "alice-1")
    log.says("a", "dele", "bob-1", pop3__message_number=1)
    log.says("a", "rset", "bob-1", pop3__restored=1)
    log.says("a", "dele", "bob-1", pop3__message_number=2, pop3__unique_id="u2")
    log.says("a", "dele", "bob-1", "failure", pop3__message_number=9)
    log.says("a", "update", "carol-1", "unknown")
    log.says(
        "b", "worker_lost", process__pid=1, process__name="popproxy 1.1", message="killed", popproxy__lost__segment="a"
    )
    bob, carol, dave = log.lost
    assert (bob.user, bob.marked, bob.messages) == ("bob", 1, [{"number": 2, "unique_id": "u2"}])
    assert (bob.worker, bob.pid, bob.why, bool(bob.when)) == ("popproxy 1.1", 1, "killed", True)
    assert (carol.update, carol.marked) == ("unknown", 0)
    assert (dave.login, dave.messages) == (dave.latest, [])
    assert log.ends(2) == ["bob-1", "carol-1", "dave-1"], "the other process runs"


def test_processes_that_end_without_a_word_have_lost_theirs_and_others_not() -> None:
    log = Log()
    for number, segment in enumerate(("stopped", "killed", "running"), 1):
        log.starts(segment, number)
        log.says(segment, "login", f"alice-{segment}")
        log.says(segment, "login", f"bob-{segment}")
        log.says(segment, "session_end", f"bob-{segment}")
    log.says("rotated away", "session_end", "carol-1")
    log.says("stopped", "session_end", "alice-stopped")
    log.says("stopped", "audit_stop")
    log.says("running", "audit_rotate", process__entity_id="here", process__pid=3)
    assert log.ends(3) == ["alice-killed"]
    (one,) = log.lost
    assert (one.pid, one.when) == (2, "")


def test_sessions_and_messages_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_lost, "OPEN", 3)
    log = Log()
    log.starts("a", 1)
    for number in range(5):
        log.says("a", "login", f"user{number}-1")
    for number in range(150):
        log.says("a", "dele", "user0-1", pop3__message_number=number)
    log.says("a", "session_end", "user1-1")
    log.says("a", "login", "late-1")
    assert log.ends() == ["user0-1", "user2-1", "late-1"]
    assert log.sessions.left_out == 2
    assert (log.lost[0].marked, len(log.lost[0].messages)) == (150, 100)
