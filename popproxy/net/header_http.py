"""Questions that are put and answered in the headers of HTTP alone, as nginx's auth_http does."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from multidict import CIMultiDict

from popproxy.errors import Unavailable

MAX_LINE: Final = 8190
"""Octets of a header in an answer. aiohttp takes 128 of them."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The status and the headers of an answer, in its order; names in lower case."""

    status: int
    headers: Sequence[tuple[str, str]]


class HeaderHttp:
    """Asks one URL, by TCP or by the Unix socket at `socket`. `context` is for https.

    Connections are kept for the next question, up to so many. Redirections are not followed, for nobody has said that
    the other place may be told passwords; no proxy is taken from the environment, no cookie is kept, and what follows
    the headers is not read. There is no deadline here beyond that for connecting: the caller has one.
    """

    def __init__(
        self, url: str, socket: Path | None, context: ssl.SSLContext | None, connections: int, connect_seconds: float
    ) -> None:
        self._url = url
        self._socket = socket
        self._context = context
        self._connections = connections
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds)
        self._session: aiohttp.ClientSession | None = None  # made in the loop that uses it

    async def ask(self, headers: Sequence[tuple[str, str]]) -> Answered:
        """GET with these headers, whose values have no control characters. Raises Unavailable, in words of ours."""
        if self._session is None:
            self._session = self._open()
        try:
            async with self._session.get(
                self._url, headers=CIMultiDict(headers), allow_redirects=False, ssl=self._context or True
            ) as answer:
                return Answered(answer.status, [(name.lower(), value) for name, value in answer.headers.items()])
        except TimeoutError:
            raise Unavailable("no connection in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable(_words(error)) from None

    async def close(self) -> None:
        """Give back the connections."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        limit = self._connections
        connector: aiohttp.BaseConnector
        if self._socket is not None:
            connector = aiohttp.UnixConnector(str(self._socket), limit=limit)
        else:
            connector = aiohttp.TCPConnector(limit=limit)
        return aiohttp.ClientSession(
            connector=connector, timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False,
            auto_decompress=False, skip_auto_headers=("Accept-Encoding",), max_line_size=MAX_LINE,
            max_field_size=MAX_LINE, headers={"User-Agent": "popproxy"},
        )  # fmt: skip


def _words(error: Exception) -> str:
    """The text of an exception may quote what was sent, or what was answered."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
        said = cause.verify_message.rstrip(".") if isinstance(cause, ssl.SSLCertVerificationError) else "it is wrong"
        return f"its certificate is refused: {said}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name does not resolve"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return "it fails in TLS"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        return f"it cannot be reached: {os.strerror(number) if number else 'no connection'}"
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError):
        return "it closes the connection"
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError):
        return "its answer is not HTTP, or too long"
    return f"it cannot be asked ({type(error).__name__})"
