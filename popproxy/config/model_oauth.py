"""Bearer tokens: the section ``oauth`` of ``popproxy.yaml``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from popproxy.config.base import Model
from popproxy.config.patterns import HttpsUrl
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import Duration, LocalPath

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


def discovery_url(issuer: str) -> str:
    """Where an issuer describes itself (OpenID Connect Discovery section 4)."""
    return issuer.rstrip("/") + "/.well-known/openid-configuration"


class Introspection(Model):
    """Asking the issuer about each token (RFC 7662)."""

    url: HttpsUrl = Field(examples=["https://login.example.com/oauth2/introspect"])
    """Where to ask."""
    client_id: str = Field(min_length=1, examples=["popproxy"])
    """The name that the issuer knows popproxy by."""
    client_secret: SecretSource = Field(examples=[{"file": "/etc/popproxy/oauth.secret"}])
    """Where the password that goes with it is."""
    cache: Duration = 60.0
    """A good token is not asked about again for so long, or until it expires. A token that is revoked may be good for
    so long still."""


class OAuthIssuer(Model):
    """Somebody whose tokens count."""

    issuer: HttpsUrl = Field(examples=["https://login.example.com/realms/mail"])
    """Its name, exactly as it stands in the tokens (iss)."""
    audience: list[str] = Field(default=[], examples=[["popproxy"]])
    """The tokens must be for one of these (aud). Without it, tokens for other services would open mailboxes."""
    scopes: list[str] = []
    """The tokens must be good for all of these (scope, or scp)."""
    user_claim: str = Field(default="email", min_length=1)
    """The claim that names the user."""
    domains: list[str] = []
    """The issuer vouches for users of these domains only. Empty: for everybody."""
    jwks: HttpsUrl | None = None
    """Where its keys are. null: where its discovery document says (issuer/.well-known/openid-configuration)."""
    algorithms: list[Algorithm] = Field(default=["RS256", "PS256", "ES256", "EdDSA"], min_length=1)
    """Signatures that count."""
    introspection: Introspection | None = None
    """Ask the issuer about each token instead, for tokens that are no JWTs or may be revoked."""
    ca: LocalPath | None = None
    """CA certificates to trust when it is asked, instead of the system's."""


class OAuth(Model):
    """Bearer tokens, for OAUTHBEARER and XOAUTH2."""

    issuers: list[OAuthIssuer] = Field(
        min_length=1, examples=[[{"issuer": "https://login.example.com/realms/mail", "audience": ["popproxy"]}]]
    )
    """Whose tokens count."""
    leeway: Duration = 60.0
    """By so much the issuer's clock and ours may differ."""
    deadline: Duration = 5.0
    """Longest wait for an issuer; then the answer is [SYS/TEMP]."""
    refresh: Duration = 3600.0
    """Keys are fetched anew after this time, or when a token is signed with one that is not known."""
    keep: Duration = 86400.0
    """Keys are used for so long if the issuer does not answer."""

    @field_validator("deadline", "refresh", "keep")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be more than nothing; write for example 5s")
        return value
