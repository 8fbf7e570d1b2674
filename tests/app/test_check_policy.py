"""What ``popproxy check`` says of the policy on a day."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

from popproxy.app.checks.policy import check_policy
from popproxy.config.loader import load_file
from tests.cli.helpers import write_config


def look(directory: Path, *policy: dict[str, Any]) -> list[tuple[str, str, str]]:
    listeners = [
        {"name": "pop3", "listen": ["127.0.0.1:0"]},
        {"name": "clear", "listen": ["127.0.0.1:0"], "tls": "none", "cleartext_networks": ["10.0.0.0/8"]},
    ]
    config = load_file(write_config(directory, listeners=listeners, policy=list(policy))).config
    return [(finding.area, finding.level, finding.text) for finding in check_policy(config)]


def test_days(tmp_path: Path) -> None:
    days = {left: date.today() + timedelta(days=left) for left in (-1, 9, 90)}
    policy = [{"mechanisms": ["LOGIN"], "until": str(day), "domains": ["a.example"]} for day in days.values()]
    found = look(tmp_path, *policy, {"mechanisms": ["PLAIN"], "listeners": ["pop3"]})
    assert found == [
        ("policy", "ok", f"LOGIN for @a.example has ended, {days[-1]} was the last day"),
        ("policy", "warning", f"LOGIN for @a.example can be used until {days[9]}, 9 days from now"),
        ("policy", "ok", f"LOGIN for @a.example can be used until {days[90]}, 90 days from now"),
        ("policy", "ok", "PLAIN for everybody at pop3 cannot be used"),
    ]


def test_listener_where_nothing_is_left(tmp_path: Path) -> None:
    rule: dict[str, Any] = {"mechanisms": ["USER", "PLAIN", "LOGIN"], "listeners": ["clear"]}
    assert look(tmp_path, rule)[1] == (
        "listener clear", "problem", "nobody can log in: everything that it offers has ended",
    )  # fmt: skip
    assert len(look(tmp_path, {**rule, "except_networks": ["10.0.0.0/8"]})) == 1
    assert len(look(tmp_path, {**rule, "until": str(date.today())})) == 1
    assert look(tmp_path) == []
