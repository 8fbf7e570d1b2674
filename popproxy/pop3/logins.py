"""Ways to log in at a backend, as the core can do them. `strategy` is the pool's word for each, for the records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from popproxy.sasl.credentials import Layer
from popproxy.types import Secret


@dataclass(frozen=True, slots=True)
class UserPass:
    """Log in by USER and PASS. `users_own`: the password is the one the client sent, so a refusal is the client's."""

    user: str
    password: Secret
    users_own: bool = False
    strategy: str = "forward"


@dataclass(frozen=True, slots=True)
class Apop:
    """Log in by APOP, if the greeting has a timestamp."""

    user: str
    secret: Secret
    strategy: str = "apop"


@dataclass(frozen=True, slots=True)
class Plain:
    """Log in by AUTH PLAIN as `authcid`, to open the maildrop of `authzid`."""

    authzid: str
    authcid: str
    password: Secret
    strategy: str = "master"


@dataclass(frozen=True, slots=True)
class Gssapi:
    """Log in by AUTH GSSAPI, to open the maildrop of `authzid`.

    `source` makes the GSS context; the core only hands it on. `layers` may protect the link afterwards, best first:
    under TLS, none.
    """

    authzid: str
    source: object
    layers: tuple[Layer, ...]
    strategy: str


@dataclass(frozen=True, slots=True)
class External:
    """Log in by AUTH EXTERNAL: TLS has shown the proxy's certificate, and it opens the maildrop of `authzid`."""

    authzid: str
    strategy: str = "external"


@dataclass(frozen=True, slots=True)
class Bearer:
    """Log in by AUTH XOAUTH2 or OAUTHBEARER, to open the maildrop of `user`.

    `source` gets the access token; the core only hands it on. `two_lines`: AUTH always stands on a line of its own.
    """

    user: str
    source: object
    mechanism: Literal["XOAUTH2", "OAUTHBEARER"] = "XOAUTH2"
    two_lines: bool = False
    strategy: str = "xoauth2"


Login = UserPass | Apop | Plain | Gssapi | External | Bearer
