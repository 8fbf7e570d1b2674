"""What must be true of a token's claims (RFC 7519, RFC 7662), however they were learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from popproxy.errors import PopproxyError
from popproxy.types import AuthFailure

MAX_CLAIM: Final = 1024
"""Characters of the claim that names the user."""


class TokenRefused(PopproxyError):
    """The token proves nothing here. `reason` says why."""

    def __init__(self, reason: AuthFailure, what: str) -> None:
        super().__init__(what)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Expected:
    """Of one issuer's tokens: for whom they must be (one of `audience`), what for (all `scopes`), whose they are.

    `domains` are those of its users, in lower case; () for any.
    """

    issuer: str
    audience: Sequence[str]
    scopes: Sequence[str]
    user_claim: str
    domains: Sequence[str] = ()

    def user(self, claims: Mapping[str, Any]) -> str:
        """Whose token it is, not canonical yet. Raises TokenRefused for a scope that is missing, or nobody's token."""
        granted = _words(claims.get("scope")) | _words(claims.get("scp"))  # RFC 9068, Microsoft
        missing = [scope for scope in self.scopes if scope not in granted]
        if missing:
            raise TokenRefused(AuthFailure.TOKEN_SCOPE, "a scope is missing")
        user = claims.get(self.user_claim)
        if not isinstance(user, str) or not user or len(user) > MAX_CLAIM:
            raise TokenRefused(AuthFailure.NOT_MAPPED, f"there is no {self.user_claim}")
        if self.user_claim == "email" and claims.get("email_verified") in (False, "false"):
            raise TokenRefused(AuthFailure.NOT_MAPPED, "nobody has verified the e-mail address")
        return user

    def check_domain(self, user: str) -> None:
        """May the issuer speak for this user, by the canonical name? Raises TokenRefused."""
        _, at, domain = user.rpartition("@")
        if self.domains and not (at and domain.lower() in self.domains):
            raise TokenRefused(AuthFailure.NOT_MAPPED, "the user is of a domain that the issuer does not speak for")

    def check_introspected(self, claims: Mapping[str, Any], now: float, leeway: float) -> None:
        """What a JWT library would have checked. Raises TokenRefused. RFC 7662 lets a server leave most of it out."""
        if claims.get("active") is not True:
            raise TokenRefused(AuthFailure.TOKEN_INVALID, "not active")
        if "iss" in claims and claims["iss"] != self.issuer:
            raise TokenRefused(AuthFailure.TOKEN_INVALID, "of another issuer")
        if self.audience and not _listed(claims.get("aud")) & set(self.audience):
            raise TokenRefused(AuthFailure.TOKEN_INVALID, "not for us")
        if "exp" in claims and not _number(claims["exp"]) > now - leeway:
            raise TokenRefused(AuthFailure.TOKEN_EXPIRED, "expired")
        if "nbf" in claims and not _number(claims["nbf"]) <= now + leeway:
            raise TokenRefused(AuthFailure.TOKEN_EXPIRED, "not valid yet")


def _words(value: Any) -> set[str]:
    return set(value.split()) if isinstance(value, str) else _listed(value)


def _listed(value: Any) -> set[str]:
    items = value if isinstance(value, list) else [value]
    return {item for item in items if isinstance(item, str)}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenRefused(AuthFailure.TOKEN_INVALID, "a time that is no number")
    try:
        return float(value)
    except OverflowError:
        raise TokenRefused(AuthFailure.TOKEN_INVALID, "a time that no clock can show") from None
