"""Sees what a scenario did from every side: client, maildrop of the backend, audit log, metrics."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from popproxy.demo.backend import Message, read_maildrop
from popproxy.demo.client import Client, MismatchError
from popproxy.demo.realm import LOCAL_USER, DemoUser
from popproxy.demo.stage import Stage
from popproxy.demo.tickets import Ticket, shake_hands

PATIENCE_SECONDS = 10.0
"""How long an audit record or a metric may take to show what has happened."""
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Record = dict[str, Any]
T = TypeVar("T")


class Witness:
    """For one scenario: opens its clients, notes `facts`, and raises MismatchError where something differs."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.clients: list[Client] = []
        self.facts: list[str] = []

    def user(self, name: str) -> DemoUser:
        """A user of the demo."""
        return self.stage.realm.users[name]

    def connect(self, implicit_tls: bool = False) -> Client:
        """A new client, by STLS port or TLS port."""
        address = self.stage.pop3s if implicit_tls else self.stage.pop3
        client = Client(address, self.stage.realm.ca, implicit_tls)
        self.clients.append(client)
        return client

    def ticket(self) -> Ticket:
        """What the local user's client shows: a fresh exchange, made with the ticket that kinit has got."""
        from popproxy.kerberos.ticket_cache import TicketCache  # noqa: PLC0415 - an optional library

        tickets = self.stage.tickets
        assert tickets is not None
        return TicketCache(self._cache()).context(tickets.principal)

    def knock(self) -> Client:
        """A new client at the KPOP listener, its ticket shown."""
        from popproxy.kerberos.ticket_cache import ap_exchange  # noqa: PLC0415 - an optional library

        assert self.stage.kpop is not None
        ticket = ap_exchange(self._cache(), "localhost")
        client = Client(self.stage.kpop, self.stage.realm.ca, first=lambda it: shake_hands(it, ticket))
        self.clients.append(client)
        return client

    def _cache(self) -> str:
        assert self.stage.tickets is not None
        return f"FILE:{self.stage.tickets.tickets[LOCAL_USER]}"

    def maildrop(self, name: str) -> list[Message]:
        """What the backend has on disk for a user, now."""
        return read_maildrop(self.user(name).maildir)

    def require(self, holds: bool, fact: str) -> None:
        """Note `fact`, or raise MismatchError if it does not hold."""
        if not holds:
            raise MismatchError(f"does not hold: {fact}")
        self.facts.append(fact)

    def records(self, client: Client, action: str) -> list[Record]:
        """The audit records of the client's session with that ``event.action``, so far."""
        return [
            record
            for record in self.stage.audit()
            if record.get("source.port") == client.port and record["event.action"] == action
        ]

    def record(self, client: Client, action: str) -> Record:
        """The one audit record of the client's session with that action; waits for it."""
        found = self.eventually(lambda: self.records(client, action), f"an audit record {action}")
        if len(found) != 1:
            raise MismatchError(f"{len(found)} audit records {action} for one session")
        return found[0]

    def eventually(self, look: Callable[[], T], what: str) -> T:
        """The first true value of `look`; MismatchError if there is none for `PATIENCE_SECONDS`."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not (found := look()):
            if time.monotonic() > give_up:
                raise MismatchError(f"there never was {what}")
            time.sleep(0.05)
        return found

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """A scrape of /metrics: value by name and labels."""
        connection = http.client.HTTPConnection(self.stage.http.host, self.stage.http.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request("GET", "/metrics")
            response = connection.getresponse()
            text = response.read().decode()
            if response.status != http.client.OK:
                raise MismatchError(f"/metrics answers {response.status}")
        finally:
            connection.close()
        samples = filter(None, map(_SAMPLE.match, text.splitlines()))
        return {
            (sample["name"], frozenset(_LABEL.findall(sample["labels"] or ""))): float(sample["value"])
            for sample in samples
        }

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric over all label sets that contain `labels`."""
        wanted = set(labels.items())
        found = [value for (family, have), value in self.metrics().items() if family == name and wanted <= have]
        if not found:
            raise MismatchError(f"/metrics has no {name} with {labels}")
        return sum(found)
