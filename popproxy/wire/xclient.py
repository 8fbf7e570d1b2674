"""XCLIENT as Dovecot's POP3 server has it: a trusted proxy says for whom it has come.

    XCLIENT ADDR=192.0.2.1 PORT=40000 SESSION=dc92af40c059a068 TTL=5

From Dovecot 2.3 (``pop3-proxy.c``): the server takes it before the login, from `login_trusted_networks` alone. From
others it answers +OK all the same, and forgets it.
"""

from __future__ import annotations

from dataclasses import dataclass

from popproxy.types import Address, SessionId

HOPS = 5
"""How many proxies may hand a session on, so that two that point at each other end it."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """The client on whose behalf we come, and our name for its session."""

    source: Address
    session: SessionId


def xclient(visitor: Visitor, ttl: int = HOPS) -> bytes:
    """The command, with its line end."""
    source = visitor.source
    return f"XCLIENT ADDR={source.host} PORT={source.port} SESSION={visitor.session} TTL={ttl}\r\n".encode("ascii")
