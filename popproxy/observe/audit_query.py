"""Which audit records somebody wants to see. Pure: octets of a line in, a record out; no file, no clock."""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from popproxy.observe.audit_render import MAX_RECORD, json_string

Record = Mapping[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEEPEST = 8
"""Values within values that are taken for a record's; popproxy writes three."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", re.ASCII)


class NotARecord(ValueError):
    """A line that holds no audit record: torn, or not from popproxy."""


def parse(line: bytes) -> Record:
    """The record of a line: it has a time and an action; all else may be of any type. Raises NotARecord."""
    if len(line) > MAX_RECORD:
        raise NotARecord
    try:
        record = _DECODER.decode(line.decode())
        when, action = record["@timestamp"], record["event.action"]
        if not (isinstance(action, str) and _TIME.fullmatch(when)):
            raise NotARecord
        datetime.fromisoformat(when)
    except (ValueError, RecursionError, TypeError, LookupError):  # UnicodeDecodeError is a ValueError
        raise NotARecord from None
    if any(_too_deep(value, DEEPEST) for value in record.values()):
        raise NotARecord
    return record  # type: ignore[no-any-return]


def _finite(text: str) -> float:
    """Python reads more than JSON has: others could not read again what is made of it."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


_DECODER = json.JSONDecoder(parse_constant=_finite, parse_float=_finite)


def _too_deep(value: object, limit: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    within = value.values() if isinstance(value, dict) else value
    return limit == 0 or any(_too_deep(one, limit - 1) for one in within)


def messages(record: Record) -> list[Mapping[str, Any]]:
    """Those that the record says are deleted, or were not in the end: ``number`` and ``unique_id`` of each."""
    listed = (record.get(name) for name in ("pop3.deleted", "pop3.abandoned"))
    return [one for some in listed if isinstance(some, list) for one in some if isinstance(one, dict)]


@dataclass(frozen=True, slots=True)
class Query:
    """What a record must have; None or nothing stands for any.

    `user` is compared without regard to case with ``user.name`` and ``user.authcid``; `network` with ``source.ip``;
    `message` with the unique-ids of the record, those of lists included; `since` (included) and `until` (excluded) with
    ``@timestamp``, in its form (``2026-11-23T09:30:00``, UTC; a prefix of it will do).
    """

    user: str | None = None
    network: Network | None = None
    session: str | None = None
    actions: frozenset[str] = frozenset()
    outcome: str | None = None
    reason: str | None = None
    message: str | None = None
    since: str | None = None
    until: str | None = None
    _needles: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        action = next(iter(self.actions)) if len(self.actions) == 1 else None
        texts = (self.user, self.session, action, self.outcome, self.reason, self.message)
        needles = [json_string(text)[1:-1].lower().encode() for text in texts if text]
        object.__setattr__(self, "_needles", tuple(needles))

    def take(self, line: bytes) -> Record | None:
        """The record of `line` if it is wanted. Raises NotARecord.

        Most lines are not even parsed: what is looked for stands in the line as it is, or the line is not wanted.
        """
        if self._needles:
            lower = line.lower()
            if not all(needle in lower for needle in self._needles):
                if not line.rstrip().endswith(b"}"):
                    raise NotARecord
                return None
        record = parse(line)
        return record if self.wants(record) else None

    def wants(self, record: Record) -> bool:
        """Is it one of those?"""
        when = str(record["@timestamp"])
        return (
            (self.since is None or when >= self.since)
            and (self.until is None or when < self.until)
            and (not self.actions or record["event.action"] in self.actions)
            and self.outcome in (None, record.get("event.outcome"))
            and self.reason in (None, record.get("event.reason"))
            and self.session in (None, record.get("session.id"))
            and self._is_by_user(record)
            and self._is_from(record)
            and self._is_about(record)
        )

    def _is_by_user(self, record: Record) -> bool:
        if self.user is None:
            return True
        wanted = self.user.casefold()
        return any(str(record.get(key, "")).casefold() == wanted for key in ("user.name", "user.authcid"))

    def _is_from(self, record: Record) -> bool:
        if self.network is None:
            return True
        try:
            return ipaddress.ip_address(str(record.get("source.ip", "")).partition("%")[0]) in self.network
        except ValueError:
            return False

    def _is_about(self, record: Record) -> bool:
        if self.message is None or record.get("pop3.unique_id") == self.message:
            return True
        return any(one.get("unique_id") == self.message for one in messages(record))
