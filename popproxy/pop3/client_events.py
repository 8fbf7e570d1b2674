"""What the backend-facing core has to say to whoever drives it."""

from __future__ import annotations

from dataclasses import dataclass

from popproxy.pop3 import capabilities
from popproxy.pop3.logins import Bearer, Gssapi, Login
from popproxy.sasl.gssapi_client import Protection


@dataclass(frozen=True, slots=True)
class StartTls:
    """The server is ready for TLS: start it, then call `upgrade_to_tls`."""


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The maildrop is open. `learned` is the server's CAPA if it was asked for in this session, {} if it has none.

    `protection` is the security layer that begins right here, if one was chosen.
    """

    login: Login
    learned: capabilities.Capabilities | None
    protection: Protection | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The server does not open the maildrop.

    `code` as the server gave it (or as its words mean it), None if it gave none.
    """

    login: Login
    code: str | None


@dataclass(frozen=True, slots=True)
class TokenNeeded:
    """Ask the GSS context of `login` for its next token, then call `token_made`, or `skip_login` if there can be none.

    `token` is the server's, None at the start: nothing of the login has been sent then.
    """

    login: Gssapi
    token: bytes | None


@dataclass(frozen=True, slots=True)
class AccessTokenNeeded:
    """Get an access token from the source of `login`, then call `access_token`. Nothing of it has been sent."""

    login: Bearer


Event = StartTls | LoggedIn | Refused | TokenNeeded | AccessTokenNeeded
