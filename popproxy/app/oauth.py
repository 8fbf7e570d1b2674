"""What is read for the section oauth while root may."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from popproxy.config.model import Config
from popproxy.config.model_oauth import OAuth, OAuthIssuer, discovery_url
from popproxy.config.rules_mechanisms import TOKEN_MECHANISMS
from popproxy.config.secret import resolve_secret
from popproxy.errors import ConfigError, Problem
from popproxy.sasl.oauth import OAuthRefusals
from popproxy.types import Secret

INSTALL_OAUTH = "pip install 'popproxy[oauth]'"


@dataclass(frozen=True, slots=True)
class IssuerSecrets:
    """What is read for one issuer before the privileges are dropped; `client_secret` for introspection."""

    context: ssl.SSLContext
    client_secret: Secret | None = None


def takes_tokens(config: Config) -> bool:
    """Does any listener?"""
    return any(name in TOKEN_MECHANISMS for listener in config.listeners for name in listener.sasl)


def oauth_refusals(section: OAuth) -> OAuthRefusals:
    """What clients are told whose tokens are refused: how to get better ones, from the first issuer."""
    first = section.issuers[0]
    discovery = discovery_url(first.issuer) if first.jwks is None and first.introspection is None else ""
    return OAuthRefusals(" ".join(first.scopes), discovery)


def read_oauth_secrets(config: Config) -> list[IssuerSecrets]:
    """For every issuer of the section oauth, in its order. Raises ConfigError with every problem."""
    if config.oauth is None or not takes_tokens(config):
        return []
    problems: list[Problem] = []
    found: list[IssuerSecrets] = []
    for number, issuer in enumerate(config.oauth.issuers):
        try:
            found.append(read_issuer_secrets(issuer, f"oauth.issuers[{number}]"))
        except ConfigError as error:
            problems += error.problems
    try:
        import popproxy.app.tokens  # noqa: F401, PLC0415 - large, an extra, and soon only root could read it
    except ImportError:
        problems.append(Problem("", "oauth", "PyJWT is not installed", INSTALL_OAUTH))
    if problems:
        raise ConfigError(problems)
    return found


def read_issuer_secrets(issuer: OAuthIssuer, key: str) -> IssuerSecrets:
    """`key` is the issuer's place in the configuration. Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=None if issuer.ca is None else str(issuer.ca))
    except (OSError, ssl.SSLError) as error:
        cure = "name a file of CA certificates in PEM"
        what = f"cannot be used: {error.strerror or error}"
        raise ConfigError([Problem(str(issuer.ca or ""), f"{key}.ca", what, cure)]) from None
    asked = issuer.introspection
    if asked is None:
        return IssuerSecrets(context)
    return IssuerSecrets(context, resolve_secret(asked.client_secret, f"{key}.introspection.client_secret"))
