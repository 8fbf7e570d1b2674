"""The status page, what it is fed with, and the same as JSON.

/status      one page, its style and its script; nothing is loaded from elsewhere
/api/status  what it shows: no user, no client's address
/api/events  the same again and again, as server-sent events
/api/sessions  who is logged in, for those who show the token; on record like any command
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Final

from aiohttp import hdrs, web

from popproxy.admin.commands import Executor, Role
from popproxy.admin.desk import Desk, Operator
from popproxy.admin.frames import CommandFailed
from popproxy.admin.overview import History, Sample, describe, judge, rates
from popproxy.admin.places import Places
from popproxy.config.model_listeners import Listener
from popproxy.observe.logs import get_logger
from popproxy.types import Secret

INTERVAL = 2.0
"""Seconds between two looks."""
SAMPLED = 6.0
"""Seconds between two points of the lines: fifteen minutes are shown."""
VIEWERS = 32
"""Pages that are kept up to date at a time. If there are more, one goes (see admin/places), and soon comes again."""
STALLED = 15.0
"""Seconds after which a page that takes nothing is given up."""
IDLE = 30.0
"""Seconds between two looks while nobody sees it: all workers are asked."""
WRONG_TOKEN = 1.0
"""Seconds until the answer to a wrong token."""
WRONG_AT_ONCE = 4
"""Wrong tokens that are answered at a time; more get 429 at once."""

HEADERS: Final = {
    "Server": "popproxy",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
_STATIC = {
    "/status": ("status.html", "text/html"),
    "/status.css": ("status.css", "text/css"),
    "/status.js": ("status.js", "text/javascript"),
}
# read while root may still do so
_FILES = {
    path: ((files("popproxy.admin") / "static" / name).read_text(), kind) for path, (name, kind) in _STATIC.items()
}

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

log = get_logger("http")


class StatusPage:
    """The page of this process. `executor` knows ``stats`` and ``backends list``, `ready` what /readyz knows.

    `desk` lists the sessions, for those who have the token; without `token` nobody has. `hosts` are the names by which
    browsers may ask, besides this machine's own: a stranger's page whose name suddenly leads here (DNS rebinding) would
    be let in otherwise.
    """

    def __init__(
        self,
        executor: Executor,
        desk: Desk,
        listeners: Sequence[Listener],
        ready: Callable[[], Awaitable[list[str]]],
        token: Secret | None,
        hosts: Iterable[str] = (),
    ) -> None:
        self._executor = executor
        self._desk = desk
        self._listeners = describe(listeners)
        self._ready = ready
        self._token = None if token is None else _digest(token.reveal())
        self._history = History(SAMPLED)
        self._before: Sample | None = None
        self._latest = b""
        machine = socket.gethostname().lower()
        self._hosts = frozenset({"localhost", machine, machine.partition(".")[0], *map(str.lower, hosts)})
        self._news = asyncio.Condition()
        self._looked = -IDLE  # monotonic
        self._looking = asyncio.Lock()
        self._viewers = Places(VIEWERS)
        self._wrong = 0
        self._watching: asyncio.Task[None] | None = None
        routes: dict[str, Handler] = {
            **dict.fromkeys(_STATIC, self._static),
            "/api/status": self._status,
            "/api/events": self._events,
            "/api/sessions": self._sessions,
        }
        self.routes: Mapping[str, Handler] = {path: self._for_us(handler) for path, handler in routes.items()}

    async def start(self) -> None:
        """Look for the first time, and from now on."""
        await self._look_again()
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """Look no more, and let all pages go."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        async with self._news:
            self._latest = b""
            self._news.notify_all()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            if self._viewers or time.monotonic() - self._looked >= IDLE:
                await self._look_again()

    async def _look_again(self) -> None:
        """Unless somebody has, just now."""
        async with self._looking:
            if time.monotonic() - self._looked < INTERVAL * 0.9:
                return
            try:
                await self._look()
            except CommandFailed as failed:  # a worker has ended over the question: the next look tells
                log.debug("the status page waits for its next look", why=str(failed))
            except Exception:
                log.exception("the status page cannot be brought up to date")
            self._looked = time.monotonic()

    async def _look(self) -> None:
        stats: Any = await self._executor.execute("stats", {})
        backends: Any = await self._executor.execute("backends list", {})
        now = Sample.of(time.time(), stats)
        self._history.take(now)
        # a worker with another configuration may have answered, while one takes over from the other
        known = [one for one in stats["listeners"] if one["name"] in self._listeners]
        listeners = [{**self._listeners[one["name"]], **one} for one in known]
        look = {"at": now.at, **stats, **backends, "listeners": listeners}
        health, verdict, why = judge(look, await self._ready())
        told = {
            **look, "health": health, "verdict": verdict, "reasons": why, "rates": rates(self._before or now, now),
            "history": self._history.lines(), "sessions_listed": self._token is not None,
        }  # fmt: skip
        self._before = now
        async with self._news:
            self._latest = json.dumps(told, ensure_ascii=False).encode()
            self._news.notify_all()

    # ---- answers ----

    def _for_us(self, handler: Handler) -> Handler:
        """`handler`, for requests that name us."""

        async def checked(request: web.BaseRequest) -> web.StreamResponse:
            if not all(map(self._is_ours, request.headers.getall(hdrs.HOST, ()))):  # browsers always send one
                return _failed(
                    HTTPStatus.MISDIRECTED_REQUEST, "popproxy does not know itself by this name: see http.hosts"
                )
            return await handler(request)

        return checked

    def _is_ours(self, host: str) -> bool:
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        name = name.removesuffix(".").lower()
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return name in self._hosts or name.endswith(".localhost")

    async def _static(self, request: web.BaseRequest) -> web.Response:
        text, kind = _FILES[request.path]
        return web.Response(text=text, content_type=kind, headers=HEADERS)

    async def _status(self, _request: web.BaseRequest) -> web.Response:
        await self._look_again()
        return web.Response(body=self._latest, content_type="application/json", headers=HEADERS)

    async def _events(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={**HEADERS, hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8"})
        viewer = _Viewer(request.transport)
        self._viewers.enter(viewer, _address(request)[0])
        try:
            await self._look_again()
            await response.prepare(request)
            while latest := self._latest:
                async with asyncio.timeout(STALLED):
                    await response.write(b"data: " + latest + b"\n\n")
                async with self._news:
                    await self._news.wait_for(lambda sent=latest: self._latest is not sent)  # type: ignore[misc]
        except ConnectionError:
            pass  # the page is closed
        except TimeoutError:
            viewer.cut()
        finally:
            self._viewers.leave(viewer)
        return response

    async def _sessions(self, request: web.BaseRequest) -> web.Response:
        if self._token is None:
            return _failed(HTTPStatus.NOT_FOUND, "http.token is not configured")
        host, port = _address(request)
        allowed = self._is_token(request.headers.get(hdrs.AUTHORIZATION, ""))
        if not allowed and self._wrong >= WRONG_AT_ONCE:
            return _failed(HTTPStatus.TOO_MANY_REQUESTS, "too many wrong tokens")
        who = {"user.name": "http.token", "source.ip": host, "source.port": port, "popproxy.operator_via": "http"}
        operator = Operator("whoever has no token", Role.VIEWER if allowed else None, who)
        async with contextlib.aclosing(self._desk.answers("who", {}, operator)) as answers:
            answer: dict[str, Any] = await anext(answers)
        if not allowed:
            self._wrong += 1
            try:
                await asyncio.sleep(WRONG_TOKEN)
            finally:
                self._wrong -= 1
            refused = _failed(HTTPStatus.UNAUTHORIZED, "that is not the token")
            refused.headers[hdrs.WWW_AUTHENTICATE] = 'Bearer realm="popproxy"'
            return refused
        if "error" in answer:
            return _failed(HTTPStatus.SERVICE_UNAVAILABLE, answer["error"]["text"])
        return web.json_response(answer["result"], headers=HEADERS)

    def _is_token(self, authorization: str) -> bool:
        assert self._token is not None
        scheme, _, shown = authorization.partition(" ")
        given = _digest(shown.strip().encode("utf-8", "surrogateescape"))
        return hmac.compare_digest(given, self._token) and scheme.lower() == "bearer"


class _Viewer:
    """A page that is kept up to date."""

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self._transport = transport

    def cut(self) -> None:
        """It takes nothing, or others need the place."""
        if self._transport is not None:
            self._transport.abort()


def _address(request: web.BaseRequest) -> tuple[str, int]:
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return peer[:2] if peer else ("", 0)


def _digest(token: bytes) -> bytes:
    """All of one length, so that a comparison tells nothing of it."""
    return hashlib.sha256(token).digest()


def _failed(status: HTTPStatus, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status, headers=HEADERS)
