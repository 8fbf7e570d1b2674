"""The HTTP port: metrics for Prometheus, health for whoever restarts or balances, pages for people. It only reads."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web

from popproxy.admin.places import Places
from popproxy.errors import Unavailable
from popproxy.observe.metric_exposition import Exposition
from popproxy.types import Address

Counts = Callable[[], Awaitable[Exposition]]
"""The metrics at this moment."""
Ready = Callable[[], Awaitable[list[str]]]
"""Why no new session can be served, a line each; empty if one can."""

_MAX_LINE = 2048  # octets of a request line or header field
_MAX_HEADERS = 32
_CONNECTIONS = 256  # at a time: those of strangers must not take the descriptors of sessions
_KEEPALIVE = 75.0  # seconds; Prometheus asks every 15 to 60
_SHUTDOWN = 1.0  # seconds for answers under way when the server stops

_INDEX = """popproxy

/metrics  Prometheus metrics
/livez    200 while the event loop runs
/readyz   200 if new sessions can be served
/status   what goes on, as a page; as JSON at /api/status
"""
_HEADERS = {hdrs.SERVER: "popproxy", hdrs.CACHE_CONTROL: "no-store", hdrs.X_CONTENT_TYPE_OPTIONS: "nosniff"}

_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class HttpServer:
    """Serves ``/metrics``, ``/livez``, ``/readyz`` and a plain index on listening sockets, and closes them at the end.

    `pages` are more, by their paths. There is no authentication here: keep it on loopback or behind a firewall.
    """

    def __init__(
        self, sockets: Sequence[socket.socket], counts: Counts, ready: Ready,
        pages: Mapping[str, _Handler] | None = None,
    ) -> None:  # fmt: skip
        self._sockets = sockets
        self._counts = counts
        self._ready = ready
        self._runner: web.ServerRunner | None = None
        self._routes: dict[str, _Handler] = {
            "/": self._index,
            "/metrics": self._scrape,
            "/livez": self._livez,
            "/readyz": self._readyz,
            **(pages or {}),
        }

    async def start(self) -> Address:
        """Serve; returns the first address."""
        server = _Server(
            self._answer,
            access_log=None,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_LINE,
            max_headers=_MAX_HEADERS,
            keepalive_timeout=_KEEPALIVE,
            lingering_time=0,
        )
        runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN)
        await runner.setup()
        for sock in self._sockets:
            await web.SockSite(runner, sock).start()
        self._runner = runner
        host, port = runner.addresses[0][:2]
        return Address(host, port)

    async def stop(self) -> None:
        """Close the port and all connections. Not an error if it was never started."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        handler = self._routes.get(request.path)
        if handler is None:
            return _plain("not found\n", HTTPStatus.NOT_FOUND)
        if request.method not in {"GET", "HEAD"}:
            response = _plain("only GET\n", HTTPStatus.METHOD_NOT_ALLOWED)
            response.headers[hdrs.ALLOW] = "GET, HEAD"
            return response
        return await handler(request)

    async def _index(self, _request: web.BaseRequest) -> web.Response:
        return _plain(_INDEX)

    async def _scrape(self, request: web.BaseRequest) -> web.Response:
        # In a thread: with many backends it takes tens of milliseconds, which no session must wait for.
        accept = ",".join(request.headers.getall(hdrs.ACCEPT, []))
        try:
            counts = await self._counts()
        except Unavailable as error:
            return _plain(f"{error}\n", HTTPStatus.SERVICE_UNAVAILABLE)
        body, content_type = await asyncio.to_thread(counts.render, accept)
        return web.Response(body=body, headers={**_HEADERS, hdrs.CONTENT_TYPE: content_type})

    async def _livez(self, _request: web.BaseRequest) -> web.Response:
        return _plain("ok\n")

    async def _readyz(self, _request: web.BaseRequest) -> web.Response:
        reasons = await self._ready()
        text = "".join(f"{reason}\n" for reason in reasons)
        return _plain(text, HTTPStatus.SERVICE_UNAVAILABLE) if reasons else _plain("ok\n")


class _Connection(web.RequestHandler):
    """Answers what is not HTTP without aiohttp's version, without repeating it and without a traceback in the log."""

    places: Places

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.places.enter(self, str((transport.get_extra_info("peername") or ("",))[0]))

    def connection_lost(self, exc: BaseException | None) -> None:
        self.places.leave(self)
        super().connection_lost(exc)

    def cut(self) -> None:
        """Others need the place."""
        if isinstance(self.transport, asyncio.WriteTransport):
            self.transport.abort()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log_exception("error while answering %s", request.path, exc_info=exc)
        response = _plain(f"{HTTPStatus(status).phrase.lower()}\n", HTTPStatus(status))
        response.force_close()
        return response


class _Server(web.Server):
    """Makes our kind of connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._places = Places(_CONNECTIONS)

    def __call__(self) -> _Connection:
        connection = _Connection(self, loop=self._loop, **self._kwargs)
        connection.places = self._places
        return connection


def _plain(text: str, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    return web.Response(text=text, status=status, headers=_HEADERS)
