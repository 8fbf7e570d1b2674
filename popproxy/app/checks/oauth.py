"""Checks of the issuers of bearer tokens: do they answer, with keys that can be used, and do they know popproxy?"""

from __future__ import annotations

import asyncio
import secrets

from popproxy.app.checks.finding import Finding, counted, misconfigured, ok, problem, warning
from popproxy.app.oauth import INSTALL_OAUTH, IssuerSecrets, read_issuer_secrets, takes_tokens
from popproxy.config.model import Config
from popproxy.config.model_oauth import OAuth, OAuthIssuer
from popproxy.errors import ConfigError, Unavailable
from popproxy.types import Secret

_REACH = "is it up, does this machine reach it, and is its certificate good (ca:)?"


async def check_oauth(config: Config, *, offline: bool) -> list[Finding]:
    """Findings about every issuer of the section oauth. Asks for keys, or about a token made up on the spot."""
    section = config.oauth
    if section is None or not takes_tokens(config):
        return []
    try:
        import popproxy.app.tokens  # noqa: F401, PLC0415 - an extra
    except ImportError:
        return [problem("oauth", "PyJWT is not installed", INSTALL_OAUTH)]
    checks = [_check(section, number, offline) for number in range(len(section.issuers))]
    return [finding for findings in await asyncio.gather(*checks) for finding in findings]


async def _check(section: OAuth, number: int, offline: bool) -> list[Finding]:
    issuer = section.issuers[number]
    area = f"issuer {issuer.issuer}"
    try:
        found = read_issuer_secrets(issuer, f"oauth.issuers[{number}]")
    except ConfigError as error:
        return misconfigured(area, error)
    if offline:
        return []
    if issuer.introspection is None:
        return [await _keys(area, section, issuer, found)]
    return [await _introspection(area, section, issuer, found)]


async def _keys(area: str, section: OAuth, issuer: OAuthIssuer, found: IssuerSecrets) -> Finding:
    from popproxy.app.tokens import key_set  # noqa: PLC0415 - an extra

    try:
        number = await key_set(section, issuer, found).fetch()
    except Unavailable as error:
        return problem(area, str(error), _REACH)
    return ok(area, f"sends {counted(number, 'key')} that can be used")


async def _introspection(area: str, section: OAuth, issuer: OAuthIssuer, found: IssuerSecrets) -> Finding:
    from popproxy.app.tokens import introspection_endpoint  # noqa: PLC0415 - an extra

    asked = introspection_endpoint(section, issuer, found)
    assert asked is not None
    try:
        claims = await asked.ask(Secret(secrets.token_urlsafe(24)))
    except Unavailable as error:
        return problem(area, str(error), f"{_REACH} With HTTP status 401, are client_id and client_secret right?")
    if claims.get("active") is not False:
        return warning(area, "does not say that a made-up token is not active", "is introspection.url right?")
    return ok(area, f"answers questions of {asked.client_id} about tokens")
