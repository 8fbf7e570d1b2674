"""Bearer tokens for OAUTHBEARER and XOAUTH2: JWTs by the issuer's keys, others by asking the issuer (RFC 7662)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import jwt

from popproxy.auth.claims import Expected, TokenRefused
from popproxy.auth.issuer_http import IssuerHttp
from popproxy.auth.jwks import KeySet
from popproxy.auth.names import NameRefused
from popproxy.auth.result import Accepted, AuthResult, CannotTell, Rejected
from popproxy.errors import Unavailable
from popproxy.sasl.credentials import TokenCredential
from popproxy.types import AuthFailure, Identity, Secret

_NOT_TRUSTED: Final = {"verify_signature": False}


class TokenIssuer(Protocol):
    """One issuer, and the way to judge its tokens."""

    def issued(self, claims: dict[str, Any] | None) -> bool:
        """May this be one of its tokens? `claims` are what a JWT says of itself, None for a token that is no JWT."""
        ...

    async def user(self, token: Secret) -> str:
        """Whose it is, not canonical yet. Raises TokenRefused, Unavailable."""
        ...

    def close(self) -> None:
        """Give up what is under way."""
        ...


@dataclass(frozen=True, slots=True)
class JwtIssuer:
    """Signs its tokens; `keys` verifies them. `algorithms` are asymmetric ones. Times may be off by `leeway` seconds."""

    expected: Expected
    keys: KeySet
    algorithms: Sequence[str]
    leeway: float

    def issued(self, claims: dict[str, Any] | None) -> bool:
        """See TokenIssuer."""
        return claims is not None and claims.get("iss") == self.expected.issuer

    async def user(self, token: Secret) -> str:
        """See TokenIssuer."""
        text = token.reveal().decode("ascii")
        try:
            header = jwt.get_unverified_header(text)
            algorithm, kid = header.get("alg"), header.get("kid")
            if algorithm not in self.algorithms:  # none and HS256 are never among them
                raise TokenRefused(AuthFailure.TOKEN_INVALID, "signed in a way that is not allowed")
            key = await self.keys.find(kid, algorithm)
            if key is None:
                raise TokenRefused(AuthFailure.TOKEN_INVALID, "signed with an unknown key")
            claims = jwt.decode(
                text, key, algorithms=[algorithm], issuer=self.expected.issuer, audience=self.expected.audience,
                leeway=self.leeway, options={"require": ["exp", "iss", "aud"]},
            )  # fmt: skip
        except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError):
            raise TokenRefused(AuthFailure.TOKEN_EXPIRED, "expired, or not valid yet") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError):
            raise TokenRefused(AuthFailure.TOKEN_INVALID, "not valid") from None
        return self.expected.user(claims)

    def close(self) -> None:
        """See TokenIssuer."""
        self.keys.close()


@dataclass(frozen=True, slots=True)
class IntrospectingIssuer:
    """Is asked about each token, as the client `client_id`."""

    expected: Expected
    http: IssuerHttp
    url: str
    client_id: str
    client_secret: Secret
    leeway: float

    def issued(self, claims: dict[str, Any] | None) -> bool:
        """See TokenIssuer. Of a token that says nothing of itself only the issuer can tell."""
        return claims is None or claims.get("iss") in (None, self.expected.issuer)

    async def user(self, token: Secret) -> str:
        """See TokenIssuer."""
        form = {"token": token.reveal().decode("ascii"), "token_type_hint": "access_token"}
        claims = await self.http.post(self.url, form, self.client_id, self.client_secret)
        self.expected.check_introspected(claims, time.time(), self.leeway)
        return self.expected.user(claims)

    def close(self) -> None:
        """See TokenIssuer."""


@dataclass(frozen=True, slots=True)
class TokenProver:
    """Judges bearer tokens. `vet` makes names canonical, and raises NameRefused."""

    issuers: Sequence[TokenIssuer]
    vet: Callable[[str], str]
    name: str = "oauth"

    async def prove(self, credential: TokenCredential) -> AuthResult:
        """See Prover. The user that the client names must be the token's."""
        try:
            claims = _claims(credential.token)
            issuer = next((issuer for issuer in self.issuers if issuer.issued(claims)), None)
            if issuer is None:
                return Rejected(AuthFailure.TOKEN_INVALID)
            user = self.vet(await issuer.user(credential.token))
            if credential.authzid and self.vet(credential.authzid) != user:
                return Rejected(AuthFailure.AUTHZID)
        except (TokenRefused, NameRefused) as refused:
            return Rejected(refused.reason)
        except Unavailable as error:
            return CannotTell(f"oauth: {error}")
        return Accepted(Identity(user, credential.authzid or user, credential.mechanism))


def _claims(token: Secret) -> dict[str, Any] | None:
    """What a JWT says of itself, which nobody has verified; None if it is none."""
    try:
        claims = jwt.decode(token.reveal().decode("ascii"), options=_NOT_TRUSTED)  # type: ignore[arg-type] # a constant
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None
