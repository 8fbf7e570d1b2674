"""`popproxy health` says what the running popproxy says of itself."""

from __future__ import annotations

import asyncio

import pytest

from popproxy.admin.health import ask
from popproxy.admin.http import HttpServer
from popproxy.errors import ConnectFailed
from popproxy.net.listener import bind
from popproxy.observe.metrics import Metrics
from popproxy.types import Address
from tests.peers.process import free_port
from tests.peers.proxy import StartProxy, settings


@pytest.mark.real
def test_health_of_one_that_runs_and_of_one_that_does_not(start_proxy: StartProxy) -> None:
    proxy = start_proxy(settings("127.0.0.1:9"))
    for more in ((), ("--ready",)):
        ended = proxy.command("health", *more)
        assert (ended.returncode, ended.stdout) == (0, "ok\n"), ended.stderr
    proxy.stop()
    ended = proxy.command("health")
    assert ended.returncode == 69
    assert "popproxy does not answer at http://127.0.0.1:" in ended.stderr


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "127.0.0.1"])
async def test_it_is_asked_whatever_address_it_listens_on(host: str) -> None:
    listen = Address(host, free_port())

    async def counts() -> Metrics:
        return Metrics([], [])

    async def ready() -> list[str]:
        return ["draining"]

    server = HttpServer(bind(listen), counts, ready)
    await server.start()
    try:
        assert await asyncio.to_thread(ask, listen, "/livez") == (True, "ok")
        assert await asyncio.to_thread(ask, listen, "/readyz") == (False, "draining")
    finally:
        await server.stop()
    with pytest.raises(ConnectFailed, match="does not answer"):
        await asyncio.to_thread(ask, listen, "/livez")
