"""Bearer tokens for OAUTHBEARER and XOAUTH2: JWTs by the issuer's keys, others by asking the issuer (RFC 7662)."""

from __future__ import annotations

import hmac
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import jwt

from popproxy.auth.claims import Expected, TokenRefused
from popproxy.auth.jwks import KeySet
from popproxy.auth.names import NameRefused
from popproxy.auth.result import Accepted, AuthResult, CannotTell, Rejected
from popproxy.errors import Unavailable
from popproxy.net.json_http import JsonHttp
from popproxy.observe.logs import get_logger
from popproxy.sasl.credentials import TokenCredential
from popproxy.types import AuthFailure, Identity, Secret

MAX_ASKING: Final = 32
"""Questions about tokens that one issuer is asked at the same time."""
MAX_REMEMBERED: Final = 10_000
"""Tokens."""
_NOT_TRUSTED: Final = {"verify_signature": False}

log = get_logger("oauth")


class TokenIssuer(Protocol):
    """One issuer, and the way to judge its tokens."""

    @property
    def expected(self) -> Expected:
        """What its tokens must be."""
        ...

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
    """Signs its tokens, for `keys`. `algorithms` are asymmetric ones. Clocks may differ by `leeway` seconds."""

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
            if (
                not isinstance(algorithm, str) or algorithm not in self.algorithms
            ):  # none and HS256 are never among them
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
class IntrospectionEndpoint:
    """Where tokens are asked about (RFC 7662), and as which client."""

    http: JsonHttp
    url: str
    client_id: str
    client_secret: Secret

    async def ask(self, token: Secret) -> Mapping[str, Any]:
        """What the issuer says of a token. Raises Unavailable."""
        form = {"token": token.reveal().decode("ascii"), "token_type_hint": "access_token"}
        return await self.http.post(self.url, form, self.client_id, self.client_secret)


class IntrospectingIssuer:
    """Is asked about each token. A good one is not asked about again for `keep` seconds, if it is good for so long."""

    def __init__(self, expected: Expected, endpoint: IntrospectionEndpoint, *, leeway: float, keep: float) -> None:
        self.expected = expected
        self._endpoint = endpoint
        self._leeway = leeway
        self._keep = keep
        self._key = secrets.token_bytes(32)  # so that what is kept of a token is worth nothing outside
        self._known: dict[bytes, tuple[float, str]] = {}  # digest of a token: until when, whose; the oldest first
        self._asking = 0

    def issued(self, claims: dict[str, Any] | None) -> bool:
        """See TokenIssuer. Of a token that says nothing of itself only the issuer can tell."""
        return claims is None or claims.get("iss") in (None, self.expected.issuer)

    async def user(self, token: Secret) -> str:
        """See TokenIssuer."""
        digest = hmac.digest(self._key, token.reveal(), "sha256")
        until, user = self._known.get(digest, (0.0, ""))
        if time.monotonic() < until:
            return user
        if self._asking >= MAX_ASKING:
            raise Unavailable(f"{self._asking} tokens are waiting for {self._endpoint.url} already")
        self._asking += 1
        try:
            claims = await self._endpoint.ask(token)
        finally:
            self._asking -= 1
        now = time.time()
        self.expected.check_introspected(claims, now, self._leeway)
        user = self.expected.user(claims)
        self._remember(digest, user, min(self._keep, float(claims.get("exp", math.inf)) - now))
        return user

    def _remember(self, digest: bytes, user: str, seconds: float) -> None:
        if seconds > 0:
            self._known.pop(digest, None)
            self._known[digest] = (time.monotonic() + seconds, user)
            if len(self._known) > MAX_REMEMBERED:
                del self._known[next(iter(self._known))]

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
            issuer.expected.check_domain(user)
            if credential.authzid and self.vet(credential.authzid) != user:
                return Rejected(AuthFailure.AUTHZID)
        except (TokenRefused, NameRefused) as refused:
            log.info("token refused", reason=str(refused.reason), why=str(refused))
            return Rejected(refused.reason)
        except Unavailable as error:
            return CannotTell(f"oauth: {error}")
        return Accepted(Identity(user, credential.authzid or user, credential.mechanism))

    def close(self) -> None:
        """Give up what is under way."""
        for issuer in self.issuers:
            issuer.close()


def _claims(token: Secret) -> dict[str, Any] | None:
    """What a JWT says of itself, which nobody has verified; None if it is none."""
    try:
        claims = jwt.decode(token.reveal().decode("ascii"), options=_NOT_TRUSTED)  # type: ignore[arg-type] # a constant
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        return None
    return claims
