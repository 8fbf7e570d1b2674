"""The keys of an OAuth issuer (JWKS, RFC 7517): fetched when needed, kept while the issuer is down, rotated with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from popproxy.config.model_oauth import discovery_url
from popproxy.config.patterns import check_https_url
from popproxy.errors import Unavailable
from popproxy.net.json_http import JsonHttp
from popproxy.observe.logs import get_logger

UNKNOWN: Final = 30.0
"""Seconds until an unknown key is asked for again: tokens with made-up key ids cause no flood."""
RETRY: Final = 5.0
"""Seconds until an issuer is asked again that has not answered."""
MAX_KEYS: Final = 100
"""Of one issuer."""
MIN_RSA_BITS: Final = 2048
MAX_RSA_MODULUS: Final = 1366
"""Digits of base64: 8192 bits. Longer ones take too long to verify with."""

FAMILIES: Final = {
    "RS256": ("RSA", None), "RS384": ("RSA", None), "RS512": ("RSA", None),
    "PS256": ("RSA", None), "PS384": ("RSA", None), "PS512": ("RSA", None),
    "ES256": ("EC", "P-256"), "ES384": ("EC", "P-384"), "ES512": ("EC", "P-521"), "EdDSA": ("OKP", "Ed25519"),
}  # fmt: skip
"""Signature algorithms (RFC 7518, RFC 8037) with the kind of key and curve each needs. None with a shared secret."""

log = get_logger("oauth")


class KeySet:
    """The keys of one issuer that may have signed with one of `algorithms`.

    `url` is where they are; None: where the issuer's discovery document says (OpenID Connect Discovery). They are
    fetched again after `refresh` seconds, and used for `keep` seconds if that does not succeed.
    """

    def __init__(
        self,
        http: JsonHttp,
        issuer: str,
        url: str | None,
        algorithms: Sequence[str],
        *,
        refresh: float,
        keep: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = http
        self._issuer = issuer
        self._url = url
        self._algorithms = frozenset(algorithms)
        self._refresh = refresh
        self._keep = keep
        self._clock = clock
        self._keys: list[Mapping[str, Any]] = []
        self._fetched = float("-inf")  # when these keys were
        self._tried = float("-inf")  # when the issuer was asked last
        self._failure = ""  # why that was in vain
        self._task: asyncio.Task[None] | None = None  # the question under way, shared by all who wait for it

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key with this id; without an id the only one that fits. None if the issuer has no such key.

        Raises Unavailable if it may have one that we have not been able to fetch.
        """
        now = self._clock()
        patience = RETRY if self._failure else UNKNOWN
        if now - self._fetched > self._keep:
            await self._ask(now)
        elif now - self._fetched > self._refresh and now - self._tried > patience:
            self._start(now)  # meanwhile the old ones will do
        found = self._pick(kid, algorithm)
        if found is None and (self._task is not None or now - self._tried > patience):
            await self.fetch()  # a new one, perhaps: issuers change their keys
            found = self._pick(kid, algorithm)
        if found is None and self._failure:
            raise Unavailable(self._failure)
        return found

    async def fetch(self) -> int:
        """Ask the issuer now; returns how many keys it has that can be used. Raises Unavailable."""
        if self._task is None:
            self._start(self._clock())
        assert self._task is not None
        await asyncio.shield(self._task)
        if self._failure:
            raise Unavailable(self._failure)
        return len(self._keys)

    def close(self) -> None:
        """Give up a question under way."""
        if self._task is not None:
            self._task.cancel()

    async def _ask(self, now: float) -> None:
        """There is nothing to judge by. Raises Unavailable."""
        if self._task is None and self._failure and now - self._tried <= RETRY:
            raise Unavailable(self._failure)
        await self.fetch()

    def _start(self, now: float) -> None:
        if self._task is None:
            self._tried = now
            self._task = asyncio.get_running_loop().create_task(self._fetch())
            self._task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = f"the keys of {self._issuer} could not be fetched"
            log.error("fetching keys failed", issuer=self._issuer, error=type(error).__name__)

    async def _fetch(self) -> None:
        try:
            url = self._url or await self._discover()
            self._keys = self._usable(await self._http.get(url))
        except Unavailable as error:
            self._failure = str(error)
            age = self._clock() - self._fetched
            kept = self._keys and age <= self._keep
            log.warning(
                "the keys of an issuer cannot be fetched", issuer=self._issuer, why=str(error),
                tokens="are judged by the keys fetched before" if kept else "cannot be judged",
            )  # fmt: skip
        else:
            self._fetched = self._clock()
            self._failure = ""

    async def _discover(self) -> str:
        place = discovery_url(self._issuer)
        document = await self._http.get(place)
        url = document.get("jwks_uri")
        if document.get("issuer") != self._issuer:
            raise Unavailable(f"{place} is of another issuer")
        try:
            return check_https_url(url if isinstance(url, str) else "")
        except ValueError:
            raise Unavailable(f"{place} names no jwks_uri with https") from None

    def _usable(self, document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Those that can verify a signature we accept. Raises Unavailable if there is none at all."""
        listed = document.get("keys")
        if not isinstance(listed, list):
            raise Unavailable(f"{self._issuer} sends no key set")
        found: list[Mapping[str, Any]] = [
            key for key in listed[:MAX_KEYS] if isinstance(key, dict) and self._fits_any(key)
        ]
        if not found:
            algorithms = ", ".join(sorted(self._algorithms))
            raise Unavailable(f"{self._issuer} has no key for {algorithms}")
        return found

    def _fits_any(self, key: Mapping[str, Any]) -> bool:
        return any(_fits(key, algorithm) for algorithm in self._algorithms)

    def _pick(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        fitting = [key for key in self._keys if kid in (None, key.get("kid")) and _fits(key, algorithm)]
        if len(fitting) != 1:
            return None  # without an id nobody can say which of several
        try:
            found = jwt.PyJWK(dict(fitting[0]), algorithm)
        except jwt.PyJWTError:
            return None
        if isinstance(found.key, RSAPublicKey) and found.key.key_size < MIN_RSA_BITS:
            return None
        return found


def _fits(key: Mapping[str, Any], algorithm: str) -> bool:
    kind, curve = FAMILIES[algorithm]
    operations = key.get("key_ops")
    return (
        key.get("kty") == kind
        and (curve is None or key.get("crv") == curve)
        and key.get("alg", algorithm) == algorithm
        and key.get("use", "sig") == "sig"
        and len(str(key.get("n", ""))) <= MAX_RSA_MODULUS
        and (operations is None or (isinstance(operations, list) and "verify" in operations))
        and "d" not in key  # somebody has published a private key: it proves nothing any more
    )
