"""The HTTP port, asked by a real client and by bare sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import aiohttp
import pytest

from popproxy.admin.http import HttpServer, Ready
from popproxy.net.listener import bind
from popproxy.observe.metrics import Metrics
from popproxy.types import Address
from tests.session.rig import PATIENCE

LOOPBACK = Address("127.0.0.1", 0)


def http_server(metrics: Metrics, ready: Ready, address: Address = LOOPBACK) -> HttpServer:
    async def counts() -> Metrics:
        return metrics

    return HttpServer(bind(address), counts, ready)


class Readiness:
    """What the proxy says about itself; tests change it."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    async def __call__(self) -> list[str]:
        return self.reasons


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(["pop3"], ["10.0.0.5:110"])


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
async def address(metrics: Metrics, readiness: Readiness) -> AsyncIterator[Address]:
    server = http_server(metrics, readiness)
    yield await server.start()
    await server.stop()


async def ask(address: Address, path: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
    async with (
        aiohttp.ClientSession() as client,
        client.request(method, f"http://{address}{path}", headers=headers) as response,
    ):
        return response.status, await response.text(), dict(response.headers)


async def ask_raw(address: Address, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    return answer


async def test_metrics_are_served_in_the_format_asked_for(address: Address, metrics: Metrics) -> None:
    metrics.connections["pop3"] += 3
    status, text, headers = await ask(address, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'popproxy_connections_total{listener="pop3"} 3.0' in text
    _, text, headers = await ask(address, "/metrics?x=1", Accept="application/openmetrics-text;version=1.0.0,*/*;q=0.1")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


async def test_a_live_process_says_ok(address: Address, readiness: Readiness) -> None:
    readiness.reasons = ["draining"]
    assert (await ask(address, "/livez"))[:2] == (200, "ok\n")


async def test_readiness_names_every_reason(address: Address, readiness: Readiness) -> None:
    assert (await ask(address, "/readyz"))[:2] == (200, "ok\n")
    readiness.reasons = ["the audit log cannot be written", "draining"]
    assert (await ask(address, "/readyz"))[:2] == (503, "the audit log cannot be written\ndraining\n")


async def test_the_index_names_the_pages_and_nothing_else_exists(address: Address) -> None:
    status, text, _ = await ask(address, "/")
    assert status == 200
    assert all(path in text for path in ("/metrics", "/livez", "/readyz"))
    for path in ("/metrics/", "/favicon.ico", "/%2e%2e/etc/passwd", "/debug"):
        assert (await ask(address, path))[0] == 404


async def test_only_reading_is_allowed(address: Address) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, _, headers = await ask(address, "/metrics", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
    status, text, _ = await ask(address, "/livez", "HEAD")
    assert (status, text) == (200, "")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /livez HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /nothing HTTP/1.0\r\n\r\n", b"404"),
        (b"USER alice\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 5000 + b"\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 100 + b"\r\n", b"400"),
    ],
)
async def test_no_answer_tells_versions_or_repeats_the_request(
    address: Address, request_: bytes, status: bytes
) -> None:
    answer = await ask_raw(address, request_)
    assert answer.split(b" ")[1] == status
    assert b"Server: popproxy\r\n" in answer
    assert b"Python" not in answer
    assert b"aiohttp" not in answer
    assert b"alice" not in answer
    assert b"aaaa" not in answer


async def test_an_error_of_ours_is_a_plain_500_and_is_logged(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> list[str]:
        raise RuntimeError("broken inside")

    server = http_server(metrics, broken)
    address = await server.start()
    status, text, headers = await ask(address, "/readyz", Accept="text/html")
    await server.stop()
    assert (status, text) == (500, "internal server error\n")
    assert headers["Server"] == "popproxy"
    assert "broken inside" in caplog.text


async def test_requests_are_not_logged(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await ask(address, "/livez")
    await ask_raw(address, b"nonsense\r\n\r\n")
    assert "livez" not in caplog.text
    assert "nonsense" not in caplog.text


async def test_stopping_frees_the_port_and_may_be_repeated(metrics: Metrics, readiness: Readiness) -> None:
    server = http_server(metrics, readiness)
    await server.stop()
    address = await server.start()
    idle, writer = await asyncio.open_connection(address.host, address.port)
    await server.stop()
    await server.stop()
    assert await asyncio.wait_for(idle.read(), PATIENCE) == b""
    writer.close()
    again = http_server(metrics, readiness, address)
    assert await again.start() == address
    await again.stop()
