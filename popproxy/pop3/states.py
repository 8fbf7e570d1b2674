"""The states of a session (RFC 1939 section 3) and what a client may say in each."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where a session stands. It only ever moves down this list."""

    AUTHORIZATION = "authorization"
    TRANSACTION = "transaction"
    UPDATE = "update"
    CLOSED = "closed"


NEXT: dict[State, frozenset[State]] = {
    State.AUTHORIZATION: frozenset({State.TRANSACTION, State.CLOSED}),
    State.TRANSACTION: frozenset({State.UPDATE, State.CLOSED}),
    State.UPDATE: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}

IN_AUTHORIZATION = frozenset({"USER", "PASS", "APOP", "RPOP", "AUTH", "STLS", "CAPA", "QUIT", "NOOP", "XCLIENT"})
"""NOOP is RFC 1939's for TRANSACTION only.

Clients that keep a line alive while they ask for a password send it earlier.
"""

RELAYED = frozenset({"STAT", "LIST", "UIDL", "RETR", "TOP", "DELE", "RSET", "NOOP", "QUIT", "CAPA"})
"""What TRANSACTION hands to the backend. LAST is answered by the proxy, the rest is refused by it."""
