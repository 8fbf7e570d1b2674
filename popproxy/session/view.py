"""What an operator may know of a running session: nothing that the audit log would not say, too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionView:
    """One session at one moment. `octets` are those from the client and those to it; `seconds` since it connected.

    `user`, `mechanism`, `pool` and `backend` are empty before the login, `tls` (``TLSv1.3``) without TLS. `phase` is
    authorization, transaction or update (RFC 1939).
    """

    id: str
    listener: str
    address: str
    tls: str
    phase: str
    user: str
    mechanism: str
    pool: str
    backend: str
    seconds: float
    octets: tuple[int, int]
