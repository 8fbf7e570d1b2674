"""What the ways to log in at a pool's servers need: sections of a pool of their own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from popproxy.config.base import Model
from popproxy.config.patterns import HttpsUrl
from popproxy.config.secret_source import SecretSource
from popproxy.config.units import Duration, LocalPath


class XOAuth2(Model):
    """Where access tokens for a pool's servers come from (OAuth 2.0)."""

    endpoint: HttpsUrl = Field(examples=["https://login.microsoftonline.com/TENANT/oauth2/v2.0/token"])
    """The URL that gives out access tokens."""
    grant: Literal["client_credentials", "refresh_token"] = "client_credentials"
    """client_credentials: one token of popproxy's own, which may open everybody's maildrop. refresh_token: each user's
    own, by a refresh token in the vault (popproxy vault set USER --kind refresh-token)."""
    client_id: str = Field(min_length=1, examples=["8d2f0f9e-6f0c-4a43-9f63-3c1f6a1b9e11"])
    """The name under which popproxy is registered there."""
    client_secret: SecretSource | None = Field(default=None, examples=[{"file": "/etc/popproxy/oauth.secret"}])
    """Where its secret is. Needed with client_credentials."""
    client_auth: Literal["basic", "form"] = "basic"
    """How id and secret are sent: basic (HTTP's basic authentication, which every endpoint must take) or form."""
    scope: str | None = Field(default=None, min_length=1)
    """What the tokens must be good for: https://outlook.office365.com/.default with Microsoft."""
    mechanism: Literal["xoauth2", "oauthbearer"] = "xoauth2"
    """The SASL mechanism that carries them: xoauth2, or oauthbearer (RFC 7628)."""
    two_lines: bool = False
    """Say true to send AUTH XOAUTH2 and the token on a line each, even if both fit into one: Microsoft insists."""
    ca: LocalPath | None = None
    """CA certificates to trust for the endpoint, instead of the system's."""
    deadline: Duration = 10.0
    """Longest wait for a token; then the answer is [SYS/TEMP]."""

    @field_validator("deadline")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be more than nothing; write for example 10s")
        return value

    @model_validator(mode="after")
    def _has_a_secret(self) -> XOAuth2:
        if self.grant == "client_credentials" and self.client_secret is None:
            cure = "write for example client_secret: {file: /etc/popproxy/oauth.secret}"
            raise ValueError(f"grant: client_credentials needs a client_secret; {cure}")
        return self
