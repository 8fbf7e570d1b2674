"""Checks of what operators use beside the control socket."""

from __future__ import annotations

from popproxy.app.checks.finding import Finding, ok, problem
from popproxy.app.operators import read_token
from popproxy.config.model import Config
from popproxy.errors import ConfigError

_AREA = "operators"


def check_operators(config: Config) -> list[Finding]:
    """Findings about the token of the status page."""
    if config.http.token is None:
        return []
    try:
        read_token(config.http)
    except ConfigError as error:
        return [problem(_AREA, f"{one.key}: {one.what}", one.cure) for one in error.problems]
    return [ok(_AREA, "the token of the status page can be read")]
