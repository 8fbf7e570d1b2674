"""``python -m tests.bench.failover``: one of three servers is killed, hangs or refuses, and comes back later.

Clients log in all the time, a fixed number a second. Every login could succeed, for the servers share their maildrops:
one that fails is a missed goal. Detection is the time from the fault until popproxy tries the other servers first,
recovery that from the repair until it sends logins there again; both as its audit log has it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tests.bench.report import table
from tests.peers.canaries import canary
from tests.peers.guesser import rightful
from tests.peers.process import REPOSITORY, Process, accepts, free_port, public_directory
from tests.peers.proxy import Proxy, proxies, settings
from tests.peers.scripted import ScriptedBackend

PER_SECOND = 20
FAULTS = ("killed", "hung", "refusing")
LEAD, TAIL = 3.0, 5.0
"""Seconds under load before the fault, and after the recovery."""
BUSY = b"-ERR [SYS/TEMP] too busy\r\n"


class Server:
    """One of the three, a process that can be treated badly."""

    def __init__(self, number: int, directory: Path) -> None:
        self.port = free_port()
        self._title = f"server {number}"
        self._directory = directory
        self._process = self._start()

    @property
    def address(self) -> str:
        """As it stands in a configuration."""
        return f"127.0.0.1:{self.port}"

    def break_down(self, fault: str) -> None:
        """As FAULTS says."""
        self._process.signal({"killed": signal.SIGKILL, "hung": signal.SIGSTOP, "refusing": signal.SIGUSR1}[fault])

    def repair(self, fault: str) -> None:
        """Undo that."""
        if fault == "killed":
            self._process = self._start()
        else:
            self._process.signal({"hung": signal.SIGCONT, "refusing": signal.SIGUSR1}[fault])

    def stop(self) -> None:
        """For good."""
        self._process.signal(signal.SIGCONT)
        self._process.stop()

    def _start(self) -> Process:
        command = [sys.executable, "-m", "tests.bench.failover", "--serve", str(self.port)]
        process = Process(self._title, command, self._directory / f"{self.port}.log", REPOSITORY)
        process.wait_for(lambda: accepts(self.port), f"{self._title} to listen")
        return process


async def serve(port: int) -> None:
    """Be one of the servers. SIGUSR1: refuse everybody, or no longer."""
    backend = ScriptedBackend([b"Subject: x\r\n\r\nx\r\n"], port=port)

    def toggle() -> None:
        backend.greeting = BUSY if backend.greeting != BUSY else b"+OK ready\r\n"

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, toggle)
    async with backend:
        await asyncio.Event().wait()


@dataclass(slots=True)
class Load:
    """Logins, as many a second as were asked for, however long each takes."""

    port: int
    took: list[tuple[float, float]] = field(default_factory=list)
    """When each began (seconds since 1970), and how long it took."""
    failed: list[bytes] = field(default_factory=list)
    _under_way: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, until: asyncio.Event) -> None:
        """Log in until told to end, and wait for the last ones."""
        number = 0
        while not until.is_set():
            task = asyncio.create_task(self._one(f"user{number}"))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            number += 1
            await asyncio.sleep(1 / PER_SECOND)
        await asyncio.gather(*self._under_way)

    async def _one(self, user: str) -> None:
        began = time.time()
        try:
            reply, seconds = await rightful(self.port, user, canary(), "127.0.0.1")
        except (OSError, EOFError, TimeoutError) as error:
            reply, seconds = repr(error).encode(), time.time() - began
        self.took.append((began, seconds))
        if not reply.startswith(b"+OK"):
            self.failed.append(reply)


async def changed(proxy: Proxy, state: str, since: float, patience: float = 120.0) -> float | None:
    """Seconds from `since` until the audit log says that a server's state has become this; None if it never does."""
    end = time.time() + patience
    while time.time() < end:
        for record in await asyncio.to_thread(proxy.audit, "backend_state"):
            when = datetime.fromisoformat(record["@timestamp"]).timestamp()
            if record["popproxy.state"] == state and when >= since:
                return when - since
        await asyncio.sleep(0.2)
    return None


async def play(proxy: Proxy, server: Server, fault: str, down_for: float) -> list[str]:
    """One fault, one repair; what came of it."""
    load, over = Load(proxy.port()), asyncio.Event()
    running = asyncio.create_task(load.run(over))
    await asyncio.sleep(LEAD)
    broken = time.time()
    server.break_down(fault)
    detection = await changed(proxy, "down", broken)
    await asyncio.sleep(down_for)
    repaired = time.time()
    await asyncio.to_thread(server.repair, fault)
    recovery = await changed(proxy, "up", repaired)
    await asyncio.sleep(TAIL)
    over.set()
    await running
    noticed = broken if detection is None else broken + detection
    finding = sorted(seconds for began, seconds in load.took if broken - 1 <= began < noticed) or [0.0]
    after = sorted(seconds for began, seconds in load.took if noticed <= began < repaired) or [0.0]
    return [
        fault, f"{len(load.failed)}/{len(load.took)}", _seconds(detection), _seconds(recovery),
        f"{finding[-1]:.2f}", f"{after[len(after) // 2]:.3f}", f"{after[-1]:.2f}",
        *({reply.decode("ascii", "replace").strip() for reply in load.failed} or [""]),
    ]  # fmt: skip


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


@contextlib.contextmanager
def site(checks: bool) -> Iterator[tuple[Proxy, Server]]:
    """A proxy before three servers, with the defaults; the first of them, which is going to suffer."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(public_directory("failover"))
        start = stack.enter_context(proxies())
        servers = []
        for number in range(3):
            servers.append(Server(number, directory))
            stack.callback(servers[-1].stop)
        pool = {
            "servers": [server.address for server in servers],
            "shared": True,
            "balance": {"choose": "weights"},
            **({"check": {"every": "2s", "timeout": "2s"}} if checks else {}),
        }
        limits, penalties = {"connections_per_address": 5000}, {"allow": ["127.0.0.0/8"]}
        yield start(settings(servers[0].address, pool=pool, limits=limits, penalties=penalties)), servers[0]


def main() -> int:
    """Play all faults, without regular checks and with them. 1 if a login has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.failover", description=__doc__)
    parser.add_argument("--down-for", type=float, default=8.0, help="seconds between detection and repair (8)")
    parser.add_argument("--only", action="append", choices=FAULTS)
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve))
        return 0
    rows = []
    for checks in (False, True):
        for fault in options.only or FAULTS:
            with site(checks) as (proxy, server):
                row = asyncio.run(play(proxy, server, fault, options.down_for))
            rows.append([f"{row[0]}, {'checks each 2 s' if checks else 'no checks'}", *row[1:7]])
            for told in filter(None, row[7:]):
                print(f"a login failed: {told}")
    head = [
        "one of three servers", "logins failed", "detection s", "recovery s", "longest login until then s",
        "median after s", "longest after s",
    ]  # fmt: skip
    print(table(head, rows))
    return 1 if any(not row[1].startswith("0/") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
