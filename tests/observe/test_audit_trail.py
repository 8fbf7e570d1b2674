"""The records of a session: what stands in them, and what must never."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popproxy.errors import LocalProtocolError
from popproxy.observe.audit_render import UniqueIds, json_octets, json_string
from popproxy.observe.audit_trail import LISTED_PER_RECORD, AuditTrail
from popproxy.types import Address, AuthFailure, CloseReason, Identity, Mechanism, Outcome, SessionId, TlsInfo
from tests.observe.conftest import BACKEND, CLIENT, MakeLog, Record, new_trail, read_records

ALICE = Identity("alice@example.com", "alice", Mechanism.PLAIN)
TLS = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
TLS_FIELDS = {"tls.version": "1.3", "tls.version_protocol": "tls", "tls.cipher": "TLS_AES_256_GCM_SHA384"}
BEFORE_LOGIN = {
    "session.id": "S1",
    "popproxy.listener": "pop3",
    "source.ip": "192.0.2.17",
    "source.port": 51234,
}
AFTER_LOGIN = BEFORE_LOGIN | {
    "user.name": "alice@example.com",
    "popproxy.pool": "main",
    "destination.address": "10.0.0.5",
    "destination.port": 110,
}
HOSTILE = [
    'a"b\\c',
    'x\r\n{"event.action":"login"}\n',
    "\x1b[31mred\x07\x00\x7f\x9b",
    "lone \udc80 \ud800 surrogates",
    "\u2028\u202egnp.exe",
    "A" * 10_000,
    "é" * 5_000,
    "%s{0}${HOME}",
]


class Lines:
    """A recorder that keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def record(self, fields: str) -> None:
        self.records.append(json.loads("{" + fields + "}"))

    def user_field(self, user: str, disclose: bool) -> str:
        return f'"user.name":{json_string(user)}' if disclose else '"user.hash":"h"'

    unique_ids = UniqueIds()


def logged_in(lines: Lines) -> AuditTrail:
    trail = AuditTrail(lines, SessionId("S1"), "pop3", CLIENT, None)
    trail.tls(TLS)
    trail.login(ALICE, "alice", "main", BACKEND)
    lines.records.clear()
    return trail


def end(trail: AuditTrail, reason: CloseReason = CloseReason.LOGOUT, **changes: Any) -> None:
    totals: dict[str, Any] = {"retr": 1, "top": 2, "dele": 3, "bytes_in": 4, "bytes_out": 5, "duration": 1.5}
    trail.end(reason, **{**totals, "committed": True, "abandoned": (), **changes})


def test_authentication_and_login_say_who_from_where_and_how() -> None:
    lines = Lines()
    trail = AuditTrail(lines, SessionId("S1"), "pop3", CLIENT, None)
    trail.tls(TLS)
    trail.auth(Outcome.FAILURE, AuthFailure.BAD_CREDENTIALS, Mechanism.LOGIN, "alice", known=True)
    trail.auth(Outcome.SUCCESS, AuthFailure.NONE, Mechanism.PLAIN, "alice", known=True)
    trail.login(ALICE, "alice", "main", BACKEND)
    common = {"event.action": "auth", "event.category": ["authentication"], "user.name": "alice"}
    assert lines.records == [
        BEFORE_LOGIN
        | TLS_FIELDS
        | common
        | {"event.outcome": "failure", "event.reason": "bad_credentials", "auth.mechanism": "LOGIN"},
        BEFORE_LOGIN | TLS_FIELDS | common | {"event.outcome": "success", "auth.mechanism": "PLAIN"},
        AFTER_LOGIN
        | TLS_FIELDS
        | {
            "event.action": "login",
            "event.category": ["authentication"],
            "event.type": ["start"],
            "event.outcome": "success",
            "auth.mechanism": "PLAIN",
            "user.authcid": "alice",
            "popproxy.strategy": "forward",
            "popproxy.server_protection": "none",
            "popproxy.mailbox": "alice",
        },
    ]


def test_a_load_balancer_is_named_beside_the_client() -> None:
    lines = Lines()
    AuditTrail(lines, SessionId("S1"), "pop3", Address("2001:db8::1", 7), Address("10.1.1.1", 9)).reset(0)
    (record,) = lines.records
    assert (record["source.ip"], record["source.port"]) == ("2001:db8::1", 7)
    assert (record["client.nat.ip"], record["client.nat.port"]) == ("10.1.1.1", 9)


def test_backend_failure_names_stage_reason_and_server() -> None:
    lines = Lines()
    AuditTrail(lines, SessionId("S1"), "pop3", CLIENT, None).backend_failure("connect", "timeout", "mail:110")
    assert lines.records == [
        BEFORE_LOGIN
        | {
            "event.action": "backend_connect",
            "event.outcome": "failure",
            "event.reason": "timeout",
            "popproxy.backend": "mail:110",
        }
    ]


UNIQUE_IDS = st.none() | st.binary(max_size=80)
NUMBERS = st.integers(min_value=1, max_value=2**40)


def expected_unique_id(unique_id: bytes | None) -> Record:
    return {} if unique_id is None else {"pop3.unique_id": json.loads(json_octets(unique_id))}


@given(st.sampled_from(["RETR", "TOP"]), NUMBERS, UNIQUE_IDS, NUMBERS, st.booleans(), st.none() | NUMBERS)
def test_a_message_record_equals_its_fields(
    verb: str, number: int, unique_id: bytes | None, octets: int, complete: bool, count: int | None
) -> None:
    lines = Lines()
    logged_in(lines).message(verb, number, unique_id, octets, complete, count)
    assert lines.records == [
        AFTER_LOGIN
        | {
            "event.action": verb.lower(),
            "event.outcome": "success" if complete else "failure",
            "pop3.message_number": number,
            "pop3.octets": octets,
            "pop3.complete": complete,
        }
        | expected_unique_id(unique_id)
        | ({} if count is None else {"pop3.lines": count})
    ]


@given(NUMBERS, UNIQUE_IDS)
def test_deletions_and_refusals_equal_their_fields(number: int, unique_id: bytes | None) -> None:
    lines = Lines()
    trail = logged_in(lines)
    trail.dele(number, unique_id)
    trail.refused("DELE", number, unique_id)
    trail.reset(number)
    message = AFTER_LOGIN | {"pop3.message_number": number} | expected_unique_id(unique_id)
    assert lines.records == [
        message | {"event.action": "dele", "event.outcome": "success"},
        message | {"event.action": "dele", "event.outcome": "failure", "event.reason": "backend_refused"},
        AFTER_LOGIN | {"event.action": "rset", "event.outcome": "success", "pop3.restored": number},
    ]


@pytest.mark.parametrize(
    ("outcome", "event_outcome", "committed"),
    [("committed", "success", True), ("refused", "failure", "partial"), ("unknown", "unknown", "unknown")],
)
def test_update_lists_the_deleted_messages(outcome: Any, event_outcome: str, committed: object) -> None:
    lines = Lines()
    logged_in(lines).update(outcome, [(1, b"u1"), (7, None)])
    assert lines.records == [
        AFTER_LOGIN
        | {
            "event.action": "update",
            "event.outcome": event_outcome,
            "pop3.committed": committed,
            "pop3.deleted_total": 2,
            "pop3.deleted": [{"number": 1, "unique_id": "u1"}, {"number": 7}],
        }
    ]


def test_a_long_list_of_deletions_is_spread_over_records_without_loss() -> None:
    deleted = [(number, b"u%d" % number) for number in range(1, 2 * LISTED_PER_RECORD + 2)]
    lines = Lines()
    trail = logged_in(lines)
    trail.update("committed", deleted)
    end(trail, CloseReason.CLIENT_LOST, committed=False, abandoned=deleted)
    updates = [record for record in lines.records if record["event.action"] == "update"]
    abandoned = [record for record in lines.records if record["event.action"] == "deletions_abandoned"]
    expected = [{"number": number, "unique_id": unique_id.decode()} for number, unique_id in deleted]
    for records, name in ((updates, "pop3.deleted"), (abandoned, "pop3.abandoned")):
        assert [record["pop3.part"] for record in records] == [1, 2, 3]
        assert [item for record in records for item in record[name]] == expected
    (ended,) = [record for record in lines.records if record["event.action"] == "session_end"]
    assert ended["pop3.abandoned_total"] == len(deleted)


def test_session_end_holds_the_totals() -> None:
    lines = Lines()
    end(logged_in(lines))
    assert lines.records == [
        AFTER_LOGIN
        | TLS_FIELDS
        | {
            "event.action": "session_end",
            "event.category": ["session"],
            "event.type": ["end"],
            "event.outcome": "success",
            "event.reason": "logout",
            "event.duration": 1_500_000_000,
            "pop3.retr": 1,
            "pop3.top": 2,
            "pop3.dele": 3,
            "pop3.bytes_in": 4,
            "pop3.bytes_out": 5,
            "pop3.committed": True,
        }
    ]


@pytest.mark.parametrize("reason", CloseReason)
def test_every_reason_to_end_has_its_outcome(reason: CloseReason) -> None:
    lines = Lines()
    end(logged_in(lines), reason, committed=None, abandoned=[(2, b"u2")])
    (record,) = lines.records
    expected = {"logout": "success", "quit_before_login": "success", "update_unknown": "unknown"}
    assert record["event.outcome"] == expected.get(reason, "failure")
    assert record["event.reason"] == reason
    assert record.get("pop3.committed") == ("unknown" if reason is CloseReason.UPDATE_UNKNOWN else None)
    assert record["pop3.abandoned"] == [{"number": 2, "unique_id": "u2"}]


def test_a_session_ends_once() -> None:
    lines = Lines()
    trail = logged_in(lines)
    end(trail)
    with pytest.raises(LocalProtocolError):
        end(trail, CloseReason.INTERNAL)
    assert len(lines.records) == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_inside_its_field(text: str, make_log: MakeLog, tmp_path: Path) -> None:
    log = make_log(log_unknown_users=True)
    trail = log.trail(SessionId("S1"), text, CLIENT, None)
    unique_id = text.encode("utf-8", "surrogatepass")
    trail.tls(TlsInfo(text, text))
    trail.auth(Outcome.FAILURE, AuthFailure.MALFORMED, Mechanism.USER, text, known=False)
    trail.backend_failure("greeting", text, text)
    trail.login(Identity(text, text, Mechanism.USER), text, text, Address(text, 110))
    trail.message("RETR", 1, unique_id, 10, True)
    trail.update("committed", [(1, unique_id)])
    end(trail)
    log.event("config_reload", Outcome.FAILURE, **{"event.reason": text})
    log.flush()
    records = read_records(tmp_path / "audit.log")
    actions = ["auth", "backend_greeting", "login", "retr", "update", "session_end", "config_reload"]
    assert [record["event.action"] for record in records] == actions
    shown = json.loads(json_string(text))
    for record, field in zip(records, ["user.name", "event.reason", "popproxy.mailbox", "user.name"], strict=False):
        assert record[field] == shown
        assert record["popproxy.listener"] == shown
    assert {record.get("session.id") for record in records[:-1]} == {"S1"}
    assert records[3]["pop3.unique_id"] == json.loads(json_octets(unique_id))


def test_the_name_of_an_unknown_user_is_hashed(make_log: MakeLog, tmp_path: Path) -> None:
    log = make_log()
    trail = new_trail(log)
    for user, known in (("hunter2", False), ("hunter2", False), ("hunter3", False), ("alice", True)):
        trail.auth(Outcome.FAILURE, AuthFailure.BAD_CREDENTIALS, Mechanism.USER, user, known)
    log.flush()
    first, second, third, known_user = read_records(tmp_path / "audit.log")
    assert b"hunter" not in (tmp_path / "audit.log").read_bytes()
    assert first["user.hash"] == second["user.hash"] != third["user.hash"]
    assert "user.name" not in first
    assert known_user["user.name"] == "alice"


def test_the_hash_of_a_user_differs_between_processes(make_log: MakeLog) -> None:
    assert make_log().user_field("hunter2", False) != make_log().user_field("hunter2", False)


def test_a_trail_is_small(make_log: MakeLog) -> None:
    trail = make_log().trail(SessionId("k3J9aaaabbbbccccdddd12"), "pop3", CLIENT, None)
    trail.tls(TLS)
    trail.login(ALICE, "alice", "main", BACKEND)
    assert not hasattr(trail, "__dict__")
    assert sys.getsizeof(trail) + sys.getsizeof(trail._session) <= 400
