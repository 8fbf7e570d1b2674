"""Checks of the section policy against today's date: what has ended, what will end, and who is left outside."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta

from popproxy.app.checks.finding import Finding, counted, ok, problem, warning
from popproxy.config.model import Config
from popproxy.config.model_policy import PolicyRule
from popproxy.config.rules_policy import ways


def check_policy(config: Config) -> list[Finding]:
    """Findings about every rule, and about listeners where everybody has been left without a way to log in."""
    today = date.today()
    findings = [_rule(rule, today) for rule in config.policy]
    return [*findings, *_nothing_left(config, today)] if findings else []


def _rule(rule: PolicyRule, today: date) -> Finding:
    what = f"{', '.join(rule.mechanisms)} {_for_whom(rule)}"
    if rule.until is None:
        return ok("policy", f"{what} cannot be used")
    if rule.ended(today):
        return ok("policy", f"{what} has ended, {rule.until} was the last day")
    left = (rule.until - today).days
    text = f"{what} can be used until {rule.until}, {counted(left, 'day')} from now"
    if timedelta(days=left) <= timedelta(seconds=rule.warn):
        return warning("policy", text, "the log names who still uses it")
    return ok("policy", text)


def _for_whom(rule: PolicyRule) -> str:
    parts = [*rule.users, *(f"@{domain}" for domain in rule.domains)]
    parts += [] if rule.regex is None else [rule.regex]
    whom = "for everybody" if rule.for_everybody else f"for {', '.join(parts[:5])}{' ...' if len(parts) > 5 else ''}"
    where = f" at {', '.join(rule.listeners)}" if rule.listeners else ""
    networks = ", ".join(map(str, rule.except_networks))
    return whom + where + (f", except from {networks}," if networks else "")


def _nothing_left(config: Config, today: date) -> Iterator[Finding]:
    for listener in config.listeners:
        gone = {
            way
            for rule in config.policy
            if rule.for_everybody and not rule.except_networks and rule.concerns(listener.name) and rule.ended(today)
            for way in rule.mechanisms
        }
        if gone.issuperset(ways(listener)):
            text = "nobody can log in: everything that it offers has ended"
            yield problem(f"listener {listener.name}", text, "offer something else, or remove the listener")
