"""Bearer tokens: OAUTHBEARER (RFC 7628) and XOAUTH2, the form that Google and Microsoft had before it."""

from __future__ import annotations

import json
import re
from typing import Final

from popproxy.sasl.credentials import TokenCredential
from popproxy.sasl.gs2 import parse_header
from popproxy.sasl.mechanism import Challenge, SaslError, Step, Verify, decode_name
from popproxy.types import Mechanism, Secret

MAX_TOKEN: Final = 8 * 1024
"""Octets of a token. Microsoft's, which list groups, are among the longest with some 4 KiB."""

_PAIR = re.compile(rb"([A-Za-z]+)=([^\0\1]*)")
_BEARER = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)


class OAuthRefusals:
    """What a client is told whose token is refused, as JSON (RFC 7628 section 3.2.2).

    `configuration` is the URL where it finds out how to get a token (OpenID Connect Discovery), `scope` what such a
    token must be good for. Both may be empty.
    """

    def __init__(self, scope: str = "", configuration: str = "") -> None:
        self.token = _json({"status": "invalid_token"}, scope, configuration)
        self.request = _json({"status": "invalid_request"}, scope, configuration)
        self.xoauth2 = _json({"status": "400", "schemes": "Bearer"}, scope, "")


class OAuthBearer:
    """One OAUTHBEARER exchange. A client that is refused answers the last challenge with a dummy, and hears -ERR."""

    def __init__(self, refusals: OAuthRefusals) -> None:
        self._refusals = refusals

    def step(self, response: bytes | None) -> Step:
        """GS2 header, then pairs of key and value; those for signed requests (host, port) mean nothing to a bearer."""
        if response is None:
            return Challenge(b"")
        try:
            header = parse_header(response)
        except SaslError as error:
            raise SaslError(str(error), self._refusals.request) from None
        if header is None or header.flag == "p":
            raise SaslError("malformed OAUTHBEARER message", self._refusals.request)
        rest = response[len(header.octets) :]
        if not rest.startswith(b"\1") or not rest.endswith(b"\1\1"):
            raise SaslError("malformed OAUTHBEARER message", self._refusals.request)
        token = _token(rest[1:-2], self._refusals.request)
        return Verify(TokenCredential(Mechanism.OAUTHBEARER, token, header.authzid), self._refusals.token)


class XOAuth2:
    """One XOAUTH2 exchange: ``user=NAME ^A auth=Bearer TOKEN ^A ^A``."""

    def __init__(self, refusals: OAuthRefusals) -> None:
        self._refusals = refusals

    def step(self, response: bytes | None) -> Step:
        """User and token."""
        if response is None:
            return Challenge(b"")
        if not response.endswith(b"\1\1"):
            raise SaslError("malformed XOAUTH2 message", self._refusals.xoauth2)
        pairs = response[:-2]
        token = _token(pairs, self._refusals.xoauth2)
        user = decode_name(_pairs(pairs, self._refusals.xoauth2).get(b"user", b""))
        return Verify(TokenCredential(Mechanism.XOAUTH2, token, user), self._refusals.xoauth2)


def _token(pairs: bytes, refusal: bytes) -> Secret:
    match = _BEARER.fullmatch(_pairs(pairs, refusal).get(b"auth", b""))
    if match is None or len(match[1]) > MAX_TOKEN:
        raise SaslError("there is no bearer token", refusal)
    return Secret(match[1])


def _pairs(octets: bytes, refusal: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for pair in octets.split(b"\1"):
        match = _PAIR.fullmatch(pair)
        if match is None or match[1].lower() in found:
            raise SaslError("malformed list of keys and values", refusal)
        found[match[1].lower()] = match[2]
    return found


def _json(status: dict[str, str], scope: str, configuration: str) -> bytes:
    fields = {**status, "scope": scope, "openid-configuration": configuration}
    return json.dumps({key: value for key, value in fields.items() if value}, separators=(",", ":")).encode()
