"""What operators prove themselves with, read before the privileges are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from popproxy.app.tunnels import INSTALL, INSTALL_GSSAPI
from popproxy.config.model import Config, Http
from popproxy.config.secret import resolve_secret
from popproxy.errors import ConfigError, Problem
from popproxy.types import Secret

if TYPE_CHECKING:
    from popproxy.admin.console import HostKey

SHORTEST_TOKEN = 16
"""Octets: nobody guesses that over a network."""


@dataclass(frozen=True, slots=True)
class OperatorSecrets:
    """What is shown to operators, or by them."""

    http_token: Secret | None = None
    host_key: HostKey | None = None


def read_operator_secrets(config: Config) -> OperatorSecrets:
    """Raises ConfigError."""
    return OperatorSecrets(read_token(config.http), read_console_key(config))


def read_console_key(config: Config) -> HostKey | None:
    """The key of the console, None if there is no console. Raises ConfigError, also if the library is missing."""
    console = config.console
    if console is None:
        return None
    try:
        from popproxy.admin.console import read_host_key  # noqa: PLC0415 - an optional library
    except ImportError as error:
        raise ConfigError([Problem("", "console", f"the SSH server is not installed: {error}", INSTALL)]) from None
    if console.keytab is not None:
        try:
            import popproxy.kerberos.initiator  # noqa: F401, PLC0415 - an optional library, which the SSH server needs
        except ImportError as error:
            what = f"the libraries for Kerberos are not installed: {error}"
            raise ConfigError([Problem("", "console.keytab", what, INSTALL_GSSAPI)]) from None
    try:
        return read_host_key(resolve_secret(console.host_key, "console.host_key"))
    except ValueError as error:
        where, cure = str(console.host_key.file or ""), "make one: ssh-keygen -t ed25519 -N '' -f console_host_key"
        raise ConfigError([Problem(where, "console.host_key", f"is of no use: {error}", cure)]) from None


def read_token(http: Http) -> Secret | None:
    """The token of the status page, None if there is none. Raises ConfigError."""
    if http.token is None or http.listen is None:
        return None
    token = resolve_secret(http.token, "http.token")
    if len(token.reveal()) < SHORTEST_TOKEN:
        what = f"is shorter than {SHORTEST_TOKEN} octets, and can be guessed"
        raise ConfigError([Problem(str(http.token.file or ""), "http.token", what, "make one: openssl rand -hex 24")])
    return token
