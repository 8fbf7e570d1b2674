"""Checks of the SSH tunnels: files, host key, login."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from popproxy.app.checks.finding import Finding, ok, problem, unreadable
from popproxy.app.checks.permissions import account, may
from popproxy.app.tunnels import read_credentials
from popproxy.config.model import Config
from popproxy.config.model_tunnels import Tunnel
from popproxy.errors import BackendError, ConfigError, ConnectFailed
from popproxy.types import Address

if TYPE_CHECKING:
    from popproxy.backend.ssh_connection import Connection

LONGEST = 6.0
"""Seconds for one tunnel, however long it may take in popproxy: the servers behind it are to be asked as well."""


@dataclass
class CheckedTunnels:
    """What was found, and the tunnels that can be used."""

    findings: list[Finding] = field(default_factory=list)
    open: dict[str, Connection] = field(default_factory=dict)

    async def connect(self, tunnel: str, address: Address) -> socket.socket:
        """A connection to a server as the tunnel sees it. Raises BackendError."""
        if tunnel not in self.open:
            raise BackendError(f"cannot be asked: the tunnel {tunnel} is not up", "connect", "tunnel")
        from popproxy.backend.ssh_connection import connect_through  # noqa: PLC0415 - an optional library

        return await connect_through(self.open[tunnel], address)


@contextlib.asynccontextmanager
async def check_tunnels(config: Config) -> AsyncIterator[CheckedTunnels]:
    """Connect all tunnels, log in, and keep them for the check of the servers behind them."""
    checked = CheckedTunnels()
    tasks: dict[str, asyncio.Task[None]] = {}

    async def check(name: str, tunnel: Tunnel) -> None:
        if tunnel.via is not None:
            await asyncio.shield(tasks[tunnel.via])
        await _check(checked, config, name, tunnel)

    for name, tunnel in config.tunnels.items():
        tasks[name] = asyncio.create_task(check(name, tunnel))
    try:
        if tasks:
            await asyncio.gather(*tasks.values())
        yield checked
    finally:
        for connection in checked.open.values():
            connection.abort()
        for connection in checked.open.values():
            await connection.wait_closed()


def check_tunnel_files(config: Config) -> list[Finding]:
    """The part of the check that asks nobody."""
    return [finding for name, tunnel in config.tunnels.items() for finding in _files(config, name, tunnel)]


def _files(config: Config, name: str, tunnel: Tunnel) -> list[Finding]:
    area, found = f"tunnel {name}", []
    user = account(config.process.user) if os.geteuid() == 0 else None
    for path in filter(None, (tunnel.known_hosts, tunnel.keytab)):
        try:
            path.open("rb").close()
            if user is not None and not may(path, os.R_OK, user, config.process.group):
                what = f"{path} may not be read by {user.pw_name}, and is read for each connection"
                found.append(problem(area, what, f"chown {user.pw_name} {path}"))
        except OSError as error:
            found.append(unreadable(area, path, error))
    try:
        read_credentials("", name, tunnel)
    except ConfigError as error:
        found += [problem(area, f"{one.where or one.key}: {one.what}", one.cure) for one in error.problems]
    return found


async def _check(checked: CheckedTunnels, config: Config, name: str, tunnel: Tunnel) -> None:
    area = f"tunnel {name}"
    found = _files(config, name, tunnel)
    checked.findings += found
    if found:
        return
    from popproxy.backend.ssh_connection import connect  # noqa: PLC0415 - an optional library

    where = f"{tunnel.host}:{tunnel.port}"
    through = None
    if tunnel.via is not None:
        if tunnel.via not in checked.open:
            checked.findings.append(problem(area, f"{where} cannot be asked: the tunnel {tunnel.via} is not up"))
            return
        through = checked.open[tunnel.via]
    short = tunnel.model_copy(update={"timeout": min(tunnel.timeout, LONGEST)})
    try:
        connection = await connect(short, read_credentials("", name, tunnel), through)
    except ConnectFailed as error:
        checked.findings.append(problem(area, f"{where}: {error}", _cure(error.reason, tunnel)))
        return
    checked.open[name] = connection
    cipher = connection.get_extra_info("send_cipher")
    checked.findings.append(ok(area, f"{where} has the right host key and lets {tunnel.user} in ({cipher})"))


def _cure(reason: str, tunnel: Tunnel) -> str:
    match reason:
        case "host_key":
            see = f"ssh-keyscan -p {tunnel.port} {tunnel.host} | ssh-keygen -lf -"
            return f"compare what `{see}` prints with what its administrator says, then correct {tunnel.known_hosts}"
        case "login":
            return f"put the public key into {tunnel.user}'s authorized_keys there"
        case "refused" | "unreachable" | "dns":
            return "is it up, and are host and port right?"
        case "timeout":
            return "is there a firewall in between?"
        case "negotiation":
            return "it offers no algorithm that is still safe: bring it up to date"
    return f"try it: ssh -N -p {tunnel.port} {tunnel.user}@{tunnel.host}"
