"""From the section oauth to what judges bearer tokens. Imported where they are taken: it takes memory, and an extra."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from popproxy.app.oauth import IssuerSecrets
from popproxy.auth.claims import Expected
from popproxy.auth.jwks import KeySet
from popproxy.auth.tokens import IntrospectingIssuer, IntrospectionEndpoint, JwtIssuer, TokenProver
from popproxy.config.model_oauth import OAuth, OAuthIssuer
from popproxy.net.json_http import JsonHttp


def token_prover(section: OAuth, secrets: Sequence[IssuerSecrets], vet: Callable[[str], str]) -> TokenProver:
    """Judges tokens of all issuers. `vet` makes names canonical, or raises NameRefused."""
    made = [token_issuer(section, issuer, secret) for issuer, secret in zip(section.issuers, secrets, strict=True)]
    return TokenProver(made, vet)


def token_issuer(section: OAuth, issuer: OAuthIssuer, secrets: IssuerSecrets) -> JwtIssuer | IntrospectingIssuer:
    """One of the issuers."""
    domains = tuple(domain.lower() for domain in issuer.domains)
    expected = Expected(issuer.issuer, issuer.audience, issuer.scopes, issuer.user_claim, domains)
    endpoint = introspection_endpoint(section, issuer, secrets)
    if endpoint is None or issuer.introspection is None:
        return JwtIssuer(expected, key_set(section, issuer, secrets), issuer.algorithms, section.leeway)
    return IntrospectingIssuer(expected, endpoint, leeway=section.leeway, keep=issuer.introspection.cache)


def key_set(section: OAuth, issuer: OAuthIssuer, secrets: IssuerSecrets) -> KeySet:
    """The issuer's keys, not fetched yet."""
    http = JsonHttp(secrets.context, section.deadline)
    return KeySet(http, issuer.issuer, issuer.jwks, issuer.algorithms, refresh=section.refresh, keep=section.keep)


def introspection_endpoint(section: OAuth, issuer: OAuthIssuer, secrets: IssuerSecrets) -> IntrospectionEndpoint | None:
    """Where the issuer is asked about its tokens, if it is."""
    asked = issuer.introspection
    if asked is None or secrets.client_secret is None:
        return None
    http = JsonHttp(secrets.context, section.deadline)
    return IntrospectionEndpoint(http, asked.url, asked.client_id, secrets.client_secret)
