"""SSH tunnels, as the sessions see them.

The SSH connections live in a thread of their own with an event loop of its own, for GSSAPI asks the KDC while
everybody waits. Sessions have no part in that: to them a server behind a tunnel is one end of a socket pair, and what
is under TLS or in a GSS layer inside the tunnel goes through it like anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from popproxy.config.model_tunnels import Tunnel as TunnelConfig
from popproxy.errors import BackendError
from popproxy.net.channel import Channel
from popproxy.net.connect import channel_on
from popproxy.net.reactor import Reactor
from popproxy.observe.metric_families import TUNNEL_STATES
from popproxy.observe.metrics import Metrics
from popproxy.types import Address

if TYPE_CHECKING:
    from popproxy.backend.ssh_connection import Credentials, SshConnection

GRACE = 2.0
"""Seconds for the thread to end its connections."""


class Tunnel:
    """One tunnel: a Transport."""

    resolves = True

    def __init__(self, connection: SshConnection, loop: asyncio.AbstractEventLoop, reactor: Reactor) -> None:
        self._connection = connection
        self._loop = loop  # the connection's
        self._reactor = reactor

    async def open(self, address: Address, deadline: float, ended: Callable[[], None] | None = None) -> Channel:
        """See Transport."""
        loop = self._reactor.loop
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:  # no descriptor left
            raise BackendError(f"{address}: {error.strerror or error}", "connect", "other") from None
        ours.setblocking(False)
        theirs.setblocking(False)
        channel = channel_on(self._reactor, ours, ended)
        channel.pause()  # until there is somebody who listens
        lost = partial(_lost, loop, channel)
        opening = self._connection.open(address, theirs, lost, max(0.0, deadline - loop.time()))
        try:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(opening, self._loop))
        except BaseException:
            channel.abort()
            raise
        channel.resume()
        return channel


def _lost(loop: asyncio.AbstractEventLoop, channel: Channel) -> None:
    """From the other thread: the SSH connection is gone, and with it this one."""
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(channel.lose, OSError(errno.ECONNRESET, "tunnel"))


class Tunnels:
    """All tunnels of the process, by name. They begin to connect at once."""

    def __init__(
        self, tunnels: Mapping[str, tuple[TunnelConfig, Credentials]], reactor: Reactor, metrics: Metrics
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._metrics = metrics
        self._thread = threading.Thread(target=self._loop.run_forever, name="tunnels", daemon=True)
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self._start(tunnels), self._loop).result()
        self._by_name = {name: Tunnel(connection, self._loop, reactor) for name, connection in started.items()}

    def __getitem__(self, name: str) -> Tunnel:
        return self._by_name[name]

    def close(self) -> None:
        """End all of them."""
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_end_tasks(), self._loop).result(GRACE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(GRACE)
        if not self._thread.is_alive():
            self._loop.close()

    async def _start(self, tunnels: Mapping[str, tuple[TunnelConfig, Credentials]]) -> dict[str, SshConnection]:
        from popproxy.backend.ssh_connection import SshConnection  # noqa: PLC0415 - large, and few need it

        made: dict[str, SshConnection] = {}

        def make(name: str) -> SshConnection:
            if name not in made:
                config, credentials = tunnels[name]
                via = None if config.via is None else make(config.via)
                made[name] = SshConnection(name, config, credentials, via, partial(self._changed, name))
            return made[name]

        self._tasks = [asyncio.create_task(make(name).keep_up(), name=f"tunnel {name}") for name in tunnels]
        return made

    def _changed(self, name: str, state: str, reason: str) -> None:
        for other in TUNNEL_STATES:
            self._metrics.ssh_connections[(name, other)] = int(other == state)
        if reason:
            self._metrics.ssh_failures[(name, reason)] += 1


async def _end_tasks() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for _ in range(5):  # for the transports, which end in a later turn of the loop
        await asyncio.sleep(0)
