"""Checks of the endpoints of access tokens: do they answer, and do they know popproxy?"""

from __future__ import annotations

import asyncio
import os
import secrets
import ssl

from popproxy.app.backends import endpoint_context
from popproxy.app.checks.finding import Finding, misconfigured, ok, problem, warning
from popproxy.app.checks.permissions import account, may
from popproxy.backend.access_tokens import AccessTokens, NoAccessToken
from popproxy.config.model import Config
from popproxy.config.model_backends import XOAuth2
from popproxy.config.secret import resolve_secret
from popproxy.errors import ConfigError
from popproxy.types import Secret

_REACH = "is it up, does this machine reach it, and is its certificate good (ca:)?"
_REFUSED = "correct client_id, client_secret or scope, or how popproxy is registered there"


async def check_endpoints(config: Config, *, offline: bool) -> list[Finding]:
    """Findings about the section xoauth2 of every pool.

    Asks for a token of popproxy's own, or with a refresh token made up on the spot.
    """
    checks = [
        _check(config, name, pool.xoauth2, offline)
        for name, pool in config.pools.items()
        if pool.xoauth2 is not None and "xoauth2" in pool.login
    ]
    return [finding for findings in await asyncio.gather(*checks) for finding in findings]


async def _check(config: Config, name: str, section: XOAuth2, offline: bool) -> list[Finding]:
    area = f"pool {name}"
    secret = None
    try:
        if section.client_secret is not None:
            secret = resolve_secret(section.client_secret, f"pools.{name}.xoauth2.client_secret")
    except ConfigError as error:
        return misconfigured(area, error)
    findings = []
    if section.grant == "refresh_token":
        findings += _may_keep(area, config)
    if not offline:
        findings.append(await _ask(area, section, secret))
    return findings


def _may_keep(area: str, config: Config) -> list[Finding]:
    """The endpoint may put a new refresh token in the place of the old one."""
    service = account(config.process.user)
    if service is None or config.vault is None:
        return []
    folder = config.vault.file.parent
    if not folder.is_dir() or may(folder, os.W_OK | os.X_OK, service, config.process.group):
        return []
    text = f"{service.pw_name} may not write to {folder}: refresh tokens that work once would be lost at the next start"
    return [warning(area, text, f"move the vault to a folder of its own that {service.pw_name} owns")]


async def _ask(area: str, section: XOAuth2, secret: Secret | None) -> Finding:
    from popproxy.net.json_http import JsonHttp  # noqa: PLC0415 - large, and few need it

    try:
        http = JsonHttp(endpoint_context(section), section.deadline)
    except (OSError, ssl.SSLError) as error:
        return problem(
            area, f"the CA file {section.ca} cannot be used: {error.strerror or error}", "correct xoauth2.ca"
        )
    tokens = AccessTokens(section, http.request_token, secret, keep=_keep_nothing)
    own = section.grant == "client_credentials"
    source = tokens.own() if own else tokens.of("", Secret(secrets.token_urlsafe(24)))
    try:
        await source.token()
    except NoAccessToken as error:
        if error.temporary:
            return problem(area, f"no access token: {error}", _REACH)
        if own or "invalid_grant" not in str(error):
            return problem(area, f"{section.endpoint} refuses popproxy: {error}", _REFUSED)
        return ok(area, f"{section.endpoint} knows {section.client_id}, and refuses a made-up refresh token")
    if own:
        return ok(area, f"{section.endpoint} gives access tokens")
    return warning(area, f"{section.endpoint} gives a token for a made-up refresh token", "is it the right endpoint?")


async def _keep_nothing(_user: str, _before: Secret, _token: Secret) -> None:
    """There is nobody whose token it were."""
