"""The client on whose behalf we come to a server, as the PROXY protocol and XCLIENT tell it."""

from __future__ import annotations

from dataclasses import dataclass

from popproxy.types import Address, SessionId

HOPS = 5
"""How many proxies may hand a session on, so that two that point at each other end it. Dovecot's figure."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """A client: where it is, where it has come to, and our name for its session.

    `hops`: how many proxies may still hand it on, the server that is told included.
    """

    source: Address
    destination: Address
    session: SessionId
    hops: int = HOPS
