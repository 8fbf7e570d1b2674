"""Would a POP3 server take a login? Greeting, and STLS where the pool asks for it. Octets in, events out."""

from __future__ import annotations

from popproxy.pop3.client import ClientConnection
from popproxy.pop3.client_events import LoggedIn
from popproxy.pop3.logins import UserPass
from popproxy.types import Secret


class ProbeConnection(ClientConnection):
    """A login at a backend up to where its credential would be sent; there it reports `LoggedIn`. Then `leave`."""

    def __init__(self, *, stls: bool) -> None:
        super().__init__([UserPass("", Secret(""))], stls=stls, known={})  # a login that never begins

    def _start_login(self) -> None:
        self._events.append(LoggedIn(self._login, None))
