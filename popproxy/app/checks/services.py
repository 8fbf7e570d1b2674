"""Checks of web services that judge passwords: does each answer, is its TLS good, does it refuse a stranger?"""

from __future__ import annotations

import secrets

from popproxy.app.checks.finding import Finding, misconfigured, ok, problem
from popproxy.app.directories import CannotStart, open_service
from popproxy.config.model import Config
from popproxy.config.model_directories import AuthHttp
from popproxy.directories.entry import Refused
from popproxy.errors import ConfigError, Unavailable
from popproxy.state.gate import Gate
from popproxy.types import Address, Secret, Visit

PROBE_SECONDS = 10.0
"""Longest time for one service; all are asked at once."""


async def check_service(config: Config, name: str, http: AuthHttp, *, offline: bool) -> list[Finding]:
    """Findings about one service. Asks it for somebody whom nobody is called, with a password made up on the spot."""
    area = f"directory {name}"
    try:
        opened = open_service(config, name, http, 1)
    except ConfigError as error:
        return misconfigured(area, error)
    except CannotStart as error:
        return [problem(area, str(error), error.cure)]
    if offline:
        return []
    from popproxy.directories.auth_http import NOBODY, AuthHttpDirectory  # noqa: PLC0415 - large

    service = AuthHttpDirectory(name, http, opened.keys, opened.http, Gate(name, 1, 1, PROBE_SECONDS))
    try:
        answer = await service.verify(NOBODY, Secret(secrets.token_hex(16)), Visit(Address("127.0.0.1", 0), True, 1))
    except Unavailable as error:
        what = str(error).removeprefix(f"{name}: ")
        return [problem(area, f"{http.url} was asked in vain: {what}", "correct url:, headers: or ca:")]
    finally:
        await service.close()
    if not isinstance(answer, Refused):
        return [problem(area, f"{http.url} lets anybody in", "let it answer Auth-Status: OK for right passwords alone")]
    how = " over TLS, its certificate is good" if http.target.secure else ""
    return [ok(area, f"{http.url} answers{how}, and refuses somebody unknown")]
