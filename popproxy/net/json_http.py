"""Questions by HTTPS, answered in JSON: short deadlines, short answers, no detours. The home of HTTP's client."""

from __future__ import annotations

import json
import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote_plus

import aiohttp

from popproxy.errors import Unavailable
from popproxy.types import Secret

MAX_ANSWER: Final = 256 * 1024
"""Octets. Key sets have some KiB."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON object, and the HTTP status that it came with. `fields` may hold secrets."""

    status: int
    fields: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Answer({self.status})"


class JsonHttp:
    """Asks for JSON. Whatever goes wrong is Unavailable, and never holds what was sent.

    A connection for each question: they are rare, and there is nothing to close. Redirections are not followed, for
    nobody has said that the other place may be trusted; no proxy is taken from the environment; and nothing is
    decompressed, lest a short answer become a long one. `deadline` is in seconds, for all of it.
    """

    def __init__(self, context: ssl.SSLContext, deadline: float) -> None:
        self._context = context
        self._timeout = aiohttp.ClientTimeout(total=deadline)

    async def get(self, url: str) -> Mapping[str, Any]:
        """The JSON object at `url`. Raises Unavailable."""
        status, octets = await self._ask("GET", url, None, {})
        _require_ok(status, url)
        return _object(octets, url)

    async def post(self, url: str, form: Mapping[str, str], user: str, password: Secret) -> Mapping[str, Any]:
        """The JSON object in answer to a form, sent with the credentials of an OAuth client (RFC 6749 section 2.3.1).

        Raises Unavailable.
        """
        status, octets = await self._ask("POST", url, form, _credentials(user, password))
        _require_ok(status, url)
        return _object(octets, url)

    async def request_token(
        self, url: str, form: Mapping[str, str], user: str | None = None, password: Secret | None = None
    ) -> Answer:
        """What a token endpoint says to a form: yes (200), or no (400 or 401, RFC 6749 section 5.2).

        With `password`, the form goes with the credentials of an OAuth client. Raises Unavailable.
        """
        status, octets = await self._ask("POST", url, form, _credentials(user, password) if user and password else {})
        if status not in (400, 401):
            _require_ok(status, url)
        return Answer(status, _object(octets, url))

    async def _ask(
        self, method: str, url: str, form: Mapping[str, str] | None, more: Mapping[str, str]
    ) -> tuple[int, bytes]:
        """Status and body."""
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "popproxy", **more}
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout, trust_env=False, auto_decompress=False) as session,
                session.request(
                    method, url, data=form, headers=headers, ssl=self._context, allow_redirects=False
                ) as answer,
            ):
                octets = await answer.content.read(MAX_ANSWER + 1)
                while len(octets) <= MAX_ANSWER and (rest := await answer.content.read(MAX_ANSWER + 1 - len(octets))):
                    octets += rest
        except TimeoutError:
            raise Unavailable(f"{url} does not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable(f"{url} cannot be asked: {_words(error)}") from None
        return answer.status, octets


def _credentials(user: str, password: Secret) -> dict[str, str]:
    words = f"{quote_plus(user)}:{quote_plus(password.reveal())}".encode("ascii")
    return {"Authorization": f"Basic {b64encode(words).decode()}"}


def _require_ok(status: int, url: str) -> None:
    if status != 200:
        raise Unavailable(f"{url} answers with HTTP status {status}")


def _words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is refused"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or "no connection"
    return type(error).__name__  # the text may quote what was sent


def _object(octets: bytes, url: str) -> Mapping[str, Any]:
    if len(octets) > MAX_ANSWER:
        raise Unavailable(f"the answer of {url} is too long")
    try:
        found = json.loads(octets)
    except (ValueError, RecursionError):
        raise Unavailable(f"the answer of {url} is not JSON") from None
    if not isinstance(found, dict):
        raise Unavailable(f"the answer of {url} is no JSON object")
    return found
