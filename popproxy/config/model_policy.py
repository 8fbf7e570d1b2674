"""Which mechanisms are given up: the section ``policy`` of ``popproxy.yaml``."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import Field

from popproxy.config.base import Model
from popproxy.config.patterns import Day, Regex
from popproxy.config.units import Duration, IpNetwork

Way = Literal[
    "USER",
    "APOP",
    "RPOP",
    "PLAIN",
    "LOGIN",
    "CRAM-MD5",
    "SCRAM-SHA-1",
    "SCRAM-SHA-1-PLUS",
    "SCRAM-SHA-256",
    "SCRAM-SHA-256-PLUS",
    "EXTERNAL",
    "OAUTHBEARER",
    "XOAUTH2",
    "GSSAPI",
    "KPOP",
]
"""How a client can log in. USER is USER and PASS."""


class PolicyRule(Model):
    """Mechanisms that are not to be used any more: by whom, where, and from when on."""

    mechanisms: list[Way] = Field(min_length=1, examples=[["APOP", "CRAM-MD5"]])
    """What is given up. USER is USER and PASS."""
    until: Day | None = None
    """The last day on which it can be used, by the clock of this machine. null: it cannot be used now."""
    warn: Duration = 30 * 86400.0
    """So long before, who still uses it is named in the log and marked in the audit log."""
    listeners: list[Annotated[str, Field(min_length=1)]] = []
    """At these listeners, by name. Empty: at all."""
    users: list[str] = []
    """For these users."""
    domains: list[str] = []
    """For users of these domains."""
    regex: Regex | None = None
    """For users whose whole name matches this regular expression. Without users, domains and regex: for everybody."""
    except_networks: list[IpNetwork] = []
    """Clients from these networks may go on."""

    @property
    def for_everybody(self) -> bool:
        """Does it look at nobody's name?"""
        return not (self.users or self.domains or self.regex is not None)

    def concerns(self, listener: str) -> bool:
        """Does it hold at the listener of that name?"""
        return not self.listeners or listener in self.listeners

    def ended(self, today: date) -> bool:
        """Is the last day over?"""
        return self.until is None or today > self.until
