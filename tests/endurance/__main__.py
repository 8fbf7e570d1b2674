"""``make malformed``, ``make slow``, ``make soak``: what only much, many or long shows."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

from tests.bench.target import limit_files
from tests.bench.tools import tools
from tests.endurance import malformed, slow, soak
from tests.faults.dialogue import MESSAGES
from tests.faults.play import Door
from tests.faults.server import Server
from tests.faults.site import Certificates
from tests.peers.process import Process, accepts, free_port, public_directory
from tests.peers.proxy import Proxy, proxies, settings
from tests.session.rig import client_context

MANY = {"connections": 20000, "connections_per_address": 20000, "sessions_per_user": 20000,
        "sessions_per_user_and_address": 20000}  # fmt: skip
P99 = 1.0
"""Seconds to a healthy login beside slow clients."""
GROWTH = 1.05
UNSENT = "16384"
"""Octets of a full send buffer of the server: thousands would take what TCP may have on this machine."""
SLOPE = 1.0
"""MiB for ten minutes."""


@contextlib.asynccontextmanager
async def site(*, compiled: bool = False, **sections: Any) -> AsyncIterator[tuple[Proxy, list[Door]]]:
    """A popproxy before a server in good health; its doors, in clear and under TLS.

    `compiled`: the benchmark's server, for crowds that the one in this process cannot feed.
    """
    with contextlib.ExitStack() as stack:
        certificates = Certificates(stack.enter_context(public_directory("endurance")))
        server = Server(
            lambda _user: None, messages=[b"Subject: long\r\n\r\n" + b"x" * 200_000 + b"\r\n", *MESSAGES[1:]]
        )
        port = _compiled_server(stack) if compiled else server.port
        start = stack.enter_context(proxies())
        configuration = settings(
            f"127.0.0.1:{port}", certificates.good, penalties={"allow": ["127.0.0.0/8"]}, limits=MANY,
            logging={"level": "error", "format": "json"}, **sections,
        )  # fmt: skip
        try:
            proxy = await asyncio.to_thread(start, configuration)
            context = client_context(certificates.authority.ca)
            yield proxy, [Door(proxy.port()), Door(proxy.port("pop3s"), context)]
        finally:
            await server.close()


def _compiled_server(stack: contextlib.ExitStack) -> int:
    directory, port = stack.enter_context(public_directory("server")), free_port()
    server = Process(
        "server", [tools().backend, str(port), str(free_port()), UNSENT], directory / "server.log", directory
    )
    stack.callback(server.stop)
    server.wait_for(lambda: accepts(port), "the server listens")
    return port


async def play_malformed(options: argparse.Namespace) -> int:
    async with site() as (proxy, doors):
        found = await malformed.flood(proxy, doors, options.sessions, options.seed)
    print(f"{found.sessions} sessions of nonsense, seed {options.seed}")
    print(f"healthy logins: {found.healthy}, others: {found.unhealthy or 'none'}")
    print(f"memory: {found.memory[0]:.1f} -> {found.memory[1]:.1f} MiB; descriptors: {found.descriptors}")
    grown = found.memory[1] > found.memory[0] * GROWTH or found.descriptors[1] > found.descriptors[0] * GROWTH
    return int(bool(found.unhealthy) or grown or not found.healthy)


async def play_slow(options: argparse.Namespace) -> int:
    status = 0
    print("| slow clients | | logins | failed | median s | p99 s | kB each |\n|---|---:|---:|---:|---:|---:|---:|")
    for clients in options.clients or [1500, 5000]:
        for kind in options.kind or slow.KINDS:
            async with site(compiled=kind in slow.FED) as (proxy, doors):
                found = await slow.crowd(proxy, doors[0], kind, clients, options.seconds)
            print(
                f"| {kind} | {clients} | {found.logins} | {len(found.failed)} | {found.median:.3f} | {found.p99:.3f}"
                f" | {found.memory:.1f} |", flush=True,
            )  # fmt: skip
            for why in set(found.failed):
                print(why)
            status |= bool(found.failed) or found.p99 > P99
    return status


async def play_soak(options: argparse.Namespace) -> int:
    found = await soak.soak(options.minutes, options.seed)
    print(f"{found.seconds / 60:.0f} minutes at {soak.SHARE:.0%} of {found.capacity:.0f} sessions a second")
    print(f"faults: {found.faults}; sessions lost: {found.lost}")
    print("sessions by clients, audit log, metrics:", *found.sessions, found.unmatched)
    first, last = found.samples[max(1, len(found.samples) // 10) - 1], found.samples[-1]
    print(f"memory: {first[1]:.1f} -> {last[1]:.1f} MiB, {found.slope:+.2f} MiB for 10 minutes")
    print(f"descriptors: {found.descriptors}")
    same = len(set(found.sessions)) == 1 and not any(found.unmatched.values())
    flat = found.descriptors[1] <= found.descriptors[0] + 5
    return int(not same or not flat or found.slope >= SLOPE or found.lost > 0)


def main() -> int:
    """1 if something was lost, grew, or kept others waiting."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance", description=__doc__)
    kinds = parser.add_subparsers(required=True)
    for name, play in (("malformed", play_malformed), ("slow", play_slow), ("soak", play_soak)):
        one = kinds.add_parser(name)
        one.set_defaults(play=play)
        one.add_argument("--seed", type=int, default=1939)
        if name == "malformed":
            one.add_argument("--sessions", type=int, default=20_000)
        elif name == "slow":
            one.add_argument("--clients", type=int, action="append", help="1500, then 5000")
            one.add_argument("--kind", action="append", choices=slow.KINDS)
            one.add_argument("--seconds", type=float, default=20.0, help="of healthy logins beside them")
        else:
            one.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    limit_files()
    status: int = asyncio.run(options.play(options))
    return status


if __name__ == "__main__":
    sys.exit(main())
