"""Checks of the ports: may they be bound, and if they are taken, by whom?"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from popproxy.app.checks.finding import Finding, ok, problem
from popproxy.app.supervising import SUPERVISOR
from popproxy.config.model import Config
from popproxy.types import Address

_PRIVILEGES = (
    "start as root and name process.user, or give the service CAP_NET_BIND_SERVICE "
    "(systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE)"
)

_SYSTEMD = {"systemd", "init", "systemd-socket-activate"}


def check_listeners(config: Config) -> list[Finding]:
    """Findings about every address that `popproxy serve` would bind. Binds and releases them; sends nothing."""
    findings: list[Finding] = []
    for listener in config.listeners:
        for address in listener.listen:
            findings += _check(f"listener {listener.name}", address)
    if config.http.listen is not None:
        findings += _check("metrics", config.http.listen)
    if config.console is not None:
        findings += _check("console", config.console.listen)
    return findings


def _check(area: str, address: Address) -> Iterator[Finding]:
    try:
        targets = _targets(address)
    except socket.gaierror as error:
        yield problem(
            area, f"{address}: {error.strerror}", "write an address of this machine, or only :port for all of them"
        )
        return
    for family, target in targets:
        error_number = _bind_error(family, target)
        if error_number:
            yield _explain(area, address, error_number)
            return
    yield ok(area, f"{address} can be bound")


def _targets(address: Address) -> list[tuple[int, tuple[str, int]]]:
    hosts = [address.host] if address.host else ["0.0.0.0", "::"]  # noqa: S104 - what the configuration says
    found = [socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE) for host in hosts]
    return [(entry[0], (str(entry[4][0]), address.port)) for entries in found for entry in entries[:1]]


def _bind_error(family: int, target: tuple[str, int]) -> int:
    try:
        probe = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return 0  # a machine without IPv6: the listener does without, too
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind(target)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and target[0] == "::":
                return 0
            return error.errno or errno.EIO
    return 0


def _explain(area: str, address: Address, error_number: int) -> Finding:
    if error_number == errno.EACCES:
        return problem(area, f"{address}: this user may not bind ports below 1024", _PRIVILEGES)
    if error_number == errno.EADDRNOTAVAIL:
        return problem(
            area,
            f"{address} is not an address of this machine",
            "correct listen, or write only :port for all addresses",
        )
    if error_number != errno.EADDRINUSE:
        return problem(area, f"{address}: {os.strerror(error_number)}")
    holder = _holder(address.port)
    if holder is None:
        cure = f"find it as root with: ss -ltnp 'sport = :{address.port}'"
        return problem(area, f"{address} is taken by a process that cannot be seen from here", cure)
    pid, command = holder
    if _is_popproxy(command):
        return ok(area, f"{address} is held by a running popproxy (pid {pid})")
    if command and Path(command[0]).name in _SYSTEMD and area.startswith("listener "):
        name = area.removeprefix("listener ")
        return ok(area, f"{address} is held by systemd: its socket unit must say FileDescriptorName={name}")
    return problem(
        area,
        f"{address} is taken by {command[0] if command else 'a process'} (pid {pid})",
        "stop that service or listen elsewhere",
    )


def _is_popproxy(command: list[str]) -> bool:
    return any(Path(word).name == "popproxy" for word in command[:3]) or command[2:4] == ["-m", SUPERVISOR]


def _holder(port: int) -> tuple[int, list[str]] | None:
    """Process id and command line of whoever listens on `port`, if Linux lets us see it."""
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not wanted:
        return None
    holders: dict[int, Path] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(_link(entry) in wanted for entry in (process / "fd").iterdir()):
                holders[int(process.name)] = process
    for pid, process in holders.items():
        with contextlib.suppress(OSError):
            # whoever started the others: workers have their sockets from their supervisor
            if int((process / "stat").read_text().rpartition(")")[2].split()[1]) not in holders:
                command = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                return pid, [word for word in command if word]
    return None


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # 0A: LISTEN
                    yield fields[9]


def _link(entry: Path) -> str:
    with contextlib.suppress(OSError):
        return str(entry.readlink())
    return ""
