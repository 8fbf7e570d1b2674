"""What operators prove themselves with, read before the privileges are dropped."""

from __future__ import annotations

from dataclasses import dataclass

from popproxy.config.model import Config, Http
from popproxy.config.secret import resolve_secret
from popproxy.errors import ConfigError, Problem
from popproxy.types import Secret

SHORTEST_TOKEN = 16
"""Octets: nobody guesses that over a network."""


@dataclass(frozen=True, slots=True)
class OperatorSecrets:
    """What is shown to operators, or by them."""

    http_token: Secret | None = None


def read_operator_secrets(config: Config) -> OperatorSecrets:
    """Raises ConfigError with everything that is wrong."""
    return OperatorSecrets(read_token(config.http))


def read_token(http: Http) -> Secret | None:
    """The token of the status page, None if there is none. Raises ConfigError."""
    if http.token is None or http.listen is None:
        return None
    token = resolve_secret(http.token, "http.token")
    if len(token.reveal()) < SHORTEST_TOKEN:
        what = f"is shorter than {SHORTEST_TOKEN} octets, and can be guessed"
        raise ConfigError([Problem(str(http.token.file or ""), "http.token", what, "make one: openssl rand -hex 24")])
    return token
