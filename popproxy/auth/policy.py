"""Mechanisms that are given up: for whom, where, and from which day on."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from typing import Final

from popproxy.config.model_policy import PolicyRule
from popproxy.observe.logs import get_logger
from popproxy.types import Mechanism

MOST_TOLD: Final = 10_000
"""Users who are named in the log on one day."""

log = get_logger("policy")


class _Rule:
    """One rule of the configuration, as a listener needs it."""

    def __init__(self, rule: PolicyRule, canonical: Callable[[str], str]) -> None:
        self.mechanisms = frozenset(rule.mechanisms)
        self.until = rule.until
        self.for_everybody = rule.for_everybody
        self._warn = timedelta(seconds=rule.warn)
        self._users = frozenset(canonical(user) for user in rule.users)
        self._domains = frozenset(domain.lower() for domain in rule.domains)
        self._regex = None if rule.regex is None else re.compile(rule.regex)
        self._except = tuple(rule.except_networks)
        self.ended = rule.ended

    def counts_from(self, host: str) -> bool:
        """For clients at this address?"""
        if not self._except:
            return True
        address = ipaddress.ip_address(host.partition("%")[0])
        return not any(address.version == network.version and address in network for network in self._except)

    def is_for(self, user: str) -> bool:
        """For this canonical name?"""
        if self.for_everybody or user in self._users:
            return True
        _, at, domain = user.rpartition("@")
        if at and domain.lower() in self._domains:
            return True
        return self._regex is not None and self._regex.fullmatch(user) is not None

    def warns(self, today: date) -> bool:
        """Will it end soon?"""
        return self.until is not None and not self.ended(today) and self.until - today <= self._warn


class Policy:
    """The rules that hold at one listener. `canonical` makes the names in them canonical."""

    def __init__(
        self,
        rules: Sequence[PolicyRule],
        listener: str,
        canonical: Callable[[str], str],
        today: Callable[[], date] = date.today,
    ) -> None:
        self._rules = [_Rule(rule, canonical) for rule in rules if rule.concerns(listener)]
        self._listener = listener
        self._today = today
        self._told: set[tuple[str, str]] = set()  # users and mechanisms, on this day:
        self._told_on = date.min

    def withdrawn(self, host: str) -> frozenset[str]:
        """Mechanisms that nobody at this address may use any more: they are not offered there."""
        today = self._today()
        return frozenset().union(
            *(
                rule.mechanisms
                for rule in self._rules
                if rule.for_everybody and rule.ended(today) and rule.counts_from(host)
            )
        )

    def forbids(self, mechanism: Mechanism, user: str, host: str) -> bool:
        """May this user not use the mechanism any more, from there?"""
        today = self._today()
        return any(rule.ended(today) for rule in self._about(mechanism, user, host))

    def ends(self, mechanism: Mechanism, user: str, host: str) -> date | None:
        """The last day for what a user has just done, if he should be warned; tells the log once a day."""
        today = self._today()
        days = [rule.until for rule in self._about(mechanism, user, host) if rule.warns(today) and rule.until]
        if not days:
            return None
        until = min(days)
        if self._told_on != today:
            self._told_on = today
            self._told.clear()
        if (user, mechanism) not in self._told and len(self._told) < MOST_TOLD:
            self._told.add((user, mechanism))
            log.warning(
                "still uses a mechanism that will end", user=user, mechanism=str(mechanism), until=until.isoformat(),
                days=(until - today).days, listener=self._listener,
            )  # fmt: skip
        return until

    def concerns(self, mechanism: Mechanism, user: str) -> bool:
        """Is there a rule about this user's use of it, from some address?"""
        return any(mechanism in rule.mechanisms and rule.is_for(user) for rule in self._rules)

    def _about(self, mechanism: Mechanism, user: str, host: str) -> list[_Rule]:
        return [
            rule
            for rule in self._rules
            if mechanism in rule.mechanisms and rule.is_for(user) and rule.counts_from(host)
        ]
