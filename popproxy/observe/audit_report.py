"""Who still logs in by ways that should end, from where, and when last: what a decommission begins with. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from popproxy.observe.audit_query import Record

OLD_MECHANISMS = ("APOP", "RPOP", "KPOP", "CRAM-MD5")
OLD_TLS = ("1.0", "1.1")
WITHOUT_TLS = "no TLS"
"""Nothing hides the mail on its way, whatever hides the password."""
TO_SERVER = " to the server"
"""Behind what should end on popproxy's other side."""
ADDRESSES = 100
"""As many addresses of one user are kept; beyond, they are only counted as more."""


@dataclass(slots=True)
class Use:
    """How one user has used one way. Times as in ``@timestamp``."""

    way: str
    user: str
    logins: int = 0
    first: str = ""
    last: str = ""
    addresses: dict[str, int] = field(default_factory=dict)
    """Logins by address, the ones seen first."""
    elsewhere: int = 0
    """Logins from addresses beyond these."""
    listeners: set[str] = field(default_factory=set)
    pools: set[str] = field(default_factory=set)
    servers: set[str] = field(default_factory=set)


def ways(record: Record) -> list[str]:
    """The ways that should end by which a ``login`` came: none is what one hopes for."""
    mechanism, version = record.get("auth.mechanism"), record.get("tls.version")
    found = [str(mechanism)] if mechanism in OLD_MECHANISMS else []
    if version is None:
        found.append(WITHOUT_TLS)
    elif version in OLD_TLS:
        found.append(f"TLS {version}")
    behind = record.get("popproxy.server_protection")
    if behind == "none":
        found.append(WITHOUT_TLS + TO_SERVER)
    elif str(behind).removeprefix("TLS ") in OLD_TLS:
        found.append(f"{behind}{TO_SERVER}")
    return found


class Report:
    """Adds up login records, in any order. It grows with the number of users, not of records."""

    def __init__(self) -> None:
        self.logins = 0
        """All of them, good ways included."""
        self.first = self.last = ""
        """Times of the records seen."""
        self._uses: dict[tuple[str, str], Use] = {}

    def add(self, record: Record) -> None:
        """Count a record, if it is a login that succeeded."""
        if record["event.action"] != "login" or record.get("event.outcome") != "success":
            return
        when, user = str(record["@timestamp"]), str(record.get("user.name", ""))
        self.logins += 1
        self.first = min(self.first or when, when)
        self.last = max(self.last, when)
        for way in ways(record):
            use = self._uses.setdefault((way, user), Use(way, user))
            use.logins += 1
            use.first = min(use.first or when, when)
            use.last = max(use.last, when)
            use.listeners.add(str(record.get("popproxy.listener", "")))
            use.pools.add(str(record.get("popproxy.pool", "")))
            use.servers.add(f"{record.get('destination.address', '')}:{record.get('destination.port', '')}")
            address = str(record.get("source.ip", ""))
            if address in use.addresses or len(use.addresses) < ADDRESSES:
                use.addresses[address] = use.addresses.get(address, 0) + 1
            else:
                use.elsewhere += 1

    def uses(self) -> list[Use]:
        """By way, the latest first."""
        latest_first = sorted(self._uses.values(), key=lambda use: use.last, reverse=True)
        return sorted(latest_first, key=lambda use: use.way)

    def totals(self) -> dict[str, tuple[int, int, str]]:
        """By way: users, logins, and when last."""
        return {way: _total(use for use in self._uses.values() if use.way == way) for way in sorted(self._ways())}

    def _ways(self) -> set[str]:
        return {way for way, _ in self._uses}


def _total(uses: Iterable[Use]) -> tuple[int, int, str]:
    found = list(uses)
    return len(found), sum(use.logins for use in found), max(use.last for use in found)
