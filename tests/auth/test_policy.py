"""What the policy says of whom, day by day."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from popproxy.auth.policy import Policy
from popproxy.config.model_policy import PolicyRule
from popproxy.types import Mechanism

HOST = "203.0.113.9"
DAY = date(2027, 1, 31)


def policy(today: date, *rules: dict[str, Any], listener: str = "pop3") -> Policy:
    made = [PolicyRule.model_validate({"mechanisms": ["APOP"], **rule}) for rule in rules]
    return Policy(made, listener, str.lower, lambda: today)


@pytest.mark.parametrize(
    ("today", "ends", "ended"),
    [
        (date(2026, 12, 31), None, False),
        (date(2027, 1, 1), DAY, False),
        (date(2027, 1, 31), DAY, False),
        (date(2027, 2, 1), None, True),
        (date(2030, 1, 1), None, True),
    ],
)
def test_days(today: date, ends: date | None, ended: bool) -> None:
    found = policy(today, {"until": "2027-01-31", "warn": "30d"})
    assert found.ends(Mechanism.APOP, "alice", HOST) == ends
    assert found.forbids(Mechanism.APOP, "alice", HOST) is ended
    assert (found.withdrawn(HOST) == {"APOP"}) is ended
    assert not found.forbids(Mechanism.USER, "alice", HOST)
    assert found.ends(Mechanism.USER, "alice", HOST) is None


@pytest.mark.parametrize(
    ("rule", "forbidden", "free"),
    [
        ({"users": ["Alice@Example.com"]}, ["alice@example.com"], ["bob@example.com", "alice"]),
        ({"domains": ["Example.COM"]}, ["bob@example.com"], ["example.com", "bob@mail.example.com", "bob"]),
        ({"regex": "[a-c].*"}, ["alice", "carol@x"], ["dave", "xalice"]),
        ({"users": ["dave"], "domains": ["a.b"], "regex": "z"}, ["dave", "x@a.b", "z"], ["alice", "zz"]),
    ],
)
def test_whom_it_is_about(rule: dict[str, Any], forbidden: list[str], free: list[str]) -> None:
    found = policy(DAY, rule)
    assert all(found.forbids(Mechanism.APOP, user, HOST) for user in forbidden)
    assert not any(found.forbids(Mechanism.APOP, user, HOST) for user in free)
    assert found.withdrawn(HOST) == frozenset()  # others are offered it still


def test_where_it_holds() -> None:
    rule = {"listeners": ["pop3"], "except_networks": ["203.0.113.0/24", "2001:db8::/32"]}
    found = policy(DAY, rule)
    for host in (HOST, "2001:db8::7", "2001:db8::7%eth0"):
        assert found.withdrawn(host) == frozenset()
        assert not found.forbids(Mechanism.APOP, "alice", host)
    for host in ("198.51.100.1", "2001:db9::7"):
        assert found.withdrawn(host) == {"APOP"}
        assert found.forbids(Mechanism.APOP, "alice", host)
    assert policy(DAY, rule, listener="pop3s").withdrawn("198.51.100.1") == frozenset()


def test_the_first_day_that_comes_decides() -> None:
    rules = ({"until": "2027-03-31", "warn": "366d"}, {"until": "2027-01-31", "warn": "366d", "users": ["alice"]})
    found = policy(date(2027, 1, 1), *rules)
    assert found.ends(Mechanism.APOP, "alice", HOST) == DAY
    assert found.ends(Mechanism.APOP, "bob", HOST) == date(2027, 3, 31)
