"""Half an hour at seven tenths of what it can do, with a fault each second: does anything grow, is anything lost?"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.tools import Tools, tools
from tests.endurance.watch import descriptors, memory
from tests.faults.cases import Case, registry
from tests.faults.play import Door, converse, leave
from tests.faults.server import Fault, Server
from tests.peers.process import Process, accepts, free_port, public_directory, wait_until
from tests.peers.proxy import Proxy, proxies, settings

SHARE = 0.7
SAMPLE = 5.0
"""Seconds between two looks at memory and descriptors."""


@dataclass
class Found:
    """`slope` in MiB for ten minutes, after the first tenth; sessions as clients, audit log and metrics have them."""

    seconds: float
    capacity: float
    """Sessions a second with nothing else to do."""
    faults: int
    lost: int
    sessions: tuple[int, int, int]
    slope: float
    samples: list[tuple[float, float, int]] = field(default_factory=list)
    """Seconds, MiB, descriptors."""
    unmatched: dict[str, int] = field(default_factory=dict)

    @property
    def descriptors(self) -> tuple[int, int]:
        """Median of the first and of the last tenth."""
        tenth = max(1, len(self.samples) // 10)
        counts = [count for _, _, count in self.samples]
        return sorted(counts[tenth : 2 * tenth] or counts)[0], sorted(counts[-tenth:])[0]


def faults() -> list[Case]:
    """Those of the registry that are over at once and can be had of one server, told apart by their users."""
    early = ("connect", "greeting", "CAPA before", "USER", "tls")
    return [
        case for case in registry()
        if not case.within and case.only == "" and not case.big
        and (case.fault is None or (case.fault.at not in early and case.fault.then != "wait"))
    ]  # fmt: skip


async def soak(minutes: float, seed: int) -> Found:
    """Everything from start to stop."""
    cases = faults()
    by_user = {f"fault{number}": case.fault for number, case in enumerate(cases)}

    def fault_for(user: str) -> Fault | None:
        return by_user.get(user)

    with contextlib.ExitStack() as stack:
        programs = tools()
        directory = stack.enter_context(public_directory("soak"))
        port = free_port()
        backend = Process(
            "backend", [programs.backend, str(port), str(free_port())], directory / "backend.log", directory
        )
        stack.callback(backend.stop)
        backend.wait_for(lambda: accepts(port), "the backend listens")
        server = Server(fault_for)
        server.gone.set()
        start = stack.enter_context(proxies())
        configuration = settings(
            f"127.0.0.1:{port}", penalties={"allow": ["127.0.0.0/8"]}, logging={"level": "error", "format": "json"},
            limits={"connections": 20000, "connections_per_address": 20000, "sessions_per_user": 20000,
                    "sessions_per_user_and_address": 20000},
        )  # fmt: skip
        configuration["pools"]["faults"] = {**configuration["pools"]["main"], "servers": [f"127.0.0.1:{server.port}"]}
        configuration["routing"] = {"rules": [{"regex": "fault.*", "pool": "faults"}], "default": "main"}
        proxy = await asyncio.to_thread(start, configuration)
        try:
            return await _run(proxy, programs, server, cases, minutes * 60, random.Random(seed))
        finally:
            await server.close()


async def _run(
    proxy: Proxy, programs: Tools, server: Server, cases: list[Case], seconds: float, chance: random.Random
) -> Found:
    door = Door(proxy.port())
    first = await _load(programs, proxy.port(), "-t", "5")
    capacity = first["sessions"] / 5
    sent, lost = first["sessions"], first["lost"]
    a_second = max(1, int(capacity * SHARE))
    samples: list[tuple[float, float, int]] = []
    began = time.monotonic()
    played = 0
    tasks: set[asyncio.Task[None]] = set()

    async def fault() -> None:
        number = chance.randrange(len(cases))
        case, user = cases[number], f"fault{number}"
        with contextlib.suppress(OSError, AssertionError):
            if case.leaves is not None:
                await leave(door, case, server, user, "127.0.0.1", 30)
            else:
                await converse(door, user, "127.0.0.1", 30, pipelined=case.pipelined)

    next_sample = 0.0
    while (now := time.monotonic() - began) < seconds:
        task = asyncio.get_running_loop().create_task(fault())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        played += 1
        done = await _load(programs, proxy.port(), "-t", "60", "-n", str(a_second))
        sent, lost = sent + done["sessions"], lost + done["lost"]
        if now >= next_sample:
            next_sample = now + SAMPLE
            samples.append(
                (now, await asyncio.to_thread(memory, proxy.worker), await asyncio.to_thread(descriptors, proxy.worker))
            )
        server.seen.clear()
        await asyncio.sleep(max(0.0, 1 - (time.monotonic() - began - now)))
    await asyncio.gather(*tasks)
    ends = await asyncio.to_thread(_ends, Path(proxy.configuration["audit"]["file"]))
    metrics = await asyncio.to_thread(proxy.metrics)
    counted = sum(value for name, value in metrics.items() if name.startswith("popproxy_connections_total"))
    ended = sum(value for name, value in metrics.items() if name.startswith("popproxy_sessions_ended_total"))
    unmatched = {
        "twice on record": sum(count > 1 for count in ends.values()),
        "metric ended": int(ended) - ends.total(),
    }
    steady = samples[max(1, len(samples) // 10) :]
    return Found(
        seconds,
        capacity,
        played,
        lost,
        (sent + played, ends.total(), int(counted)),
        _slope(steady) * 600,
        samples,
        unmatched,
    )


def _ends(log: Path) -> Counter[str]:
    """How often each session has ended, once all have. Half an hour's log is too large to be held."""
    found: Counter[str] = Counter()
    begun: set[str] = set()

    with log.open("rb") as lines:
        half = b""

        def all_ended() -> bool:
            nonlocal half
            for line in lines:
                half += line
                if not half.endswith(b"\n"):
                    continue
                record = json.loads(half)
                half = b""
                session = record.get("session.id")
                if record["event.action"] == "session_end":
                    found[session] += 1
                    begun.discard(session)
                elif session is not None and session not in found:
                    begun.add(session)
            return not begun

        wait_until(all_ended, "the session_end record of every session", 60)
    return found


async def _load(programs: Tools, port: int, *options: str) -> dict[str, int]:
    """Whole sessions by the load generator; what it says of them."""
    command = [str(programs.load), "churn", str(port), "-c", "16", "-k", "2", *options]
    run = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(run.stdout)  # type: ignore[no-any-return]


def _slope(samples: list[tuple[float, float, int]]) -> float:
    """MiB a second, by least squares."""
    if len(samples) < 2:
        return 0.0
    mean_x = sum(at for at, _, _ in samples) / len(samples)
    mean_y = sum(size for _, size, _ in samples) / len(samples)
    return sum((at - mean_x) * (size - mean_y) for at, size, _ in samples) / sum(
        (at - mean_x) ** 2 for at, _, _ in samples
    )
