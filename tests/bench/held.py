"""Scenarios about memory: sessions that do nothing, and clients that do not read. Each has a fresh process."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tests.bench.scenario import Figure, Loader, Measurement, MeasurementError
from tests.bench.setups import DEFAULT
from tests.bench.target import Target

_REST = 1.5  # seconds in which nothing happens


@dataclass(frozen=True)
class Idle:
    """Sessions that are logged in and wait. All of them must still be there at the end: each says QUIT."""

    name: str
    title: str
    tls: bool = False
    alone: bool = True
    setup: str = DEFAULT
    figures: tuple[Figure, ...] = (
        Figure("memory", "kB/session"),
        Figure("sessions", ""),
        Figure("base", "MiB"),
        Figure("login", "us"),
        Figure("idle CPU", "ms per s"),
        Figure("processes", ""),
    )

    def measure(self, loader: Loader, target: Target) -> Measurement:
        time.sleep(1)
        group, count = target.group, min(loader.most, target.most_idle)
        base, started = group.pss_kb(), group.cpu()
        with loader.held(target, "idle", "-c", str(count), "-r", "128", tls=self.tls) as held:
            time.sleep(1)
            logged_in, memory, processes = group.cpu(), group.pss_kb(), len(group.pids())
            time.sleep(_REST)
            rest = group.cpu() - logged_in
        if not held.count or held.load is None:
            raise MeasurementError("no session was logged in")
        values = {
            "memory": (memory - base) / held.count,
            "sessions": held.count,
            "base": base / 1024,
            "login": (logged_in - started).total / 1e3 / held.count,
            "idle CPU": rest.total / 1e6 / _REST,
            "processes": processes,
        }
        return Measurement(values, held.load.lost, held.load.altered)


@dataclass(frozen=True)
class Stuck:
    """Clients that ask for 10 MB and read nothing, with healthy ones beside them; then they read on, to the end."""

    name: str = "stuck"
    title: str = "100 clients that ask for 10 MB and do not read, and 16 healthy ones beside them"
    alone: bool = True
    setup: str = DEFAULT
    figures: tuple[Figure, ...] = (
        Figure("memory", "kB/stuck reader"),
        Figure("beside: CPU", "us"),
        Figure("median", "ms"),
        Figure("p99", "ms"),
        Figure("CPU at rest", "ms per s"),
    )

    def measure(self, loader: Loader, target: Target) -> Measurement:
        group = target.group
        warm = loader.run(target, "churn", "-c", "16", seconds=0.5)  # so that what is allocated once is there
        time.sleep(1)
        base = group.pss_kb()
        with loader.held(target, "stuck", "-c", "100", "-u", "b1") as stuck:
            _wait_for_rest(target)  # first it fills the kernel's buffers
            memory, before = group.pss_kb(), group.cpu()
            time.sleep(_REST)
            rested = group.cpu()
            healthy = loader.run(target, "churn", "-c", "16", seconds=1.5)
            cpu = group.cpu() - rested
        if stuck.load is None or not stuck.count or not healthy.sessions:
            raise MeasurementError("nothing was done")
        values = {
            "memory": (memory - base) / stuck.count,
            "beside: CPU": cpu.total / 1e3 / healthy.sessions,
            "median": healthy.p50_us / 1e3,
            "p99": healthy.p99_us / 1e3,
            "CPU at rest": (rested - before).total / 1e6 / _REST,
        }
        loads = (warm, healthy, stuck.load)
        return Measurement(values, sum(load.lost for load in loads), sum(load.altered for load in loads))


def _wait_for_rest(target: Target) -> None:
    """Until the target does next to nothing. Raises MeasurementError if that does not come."""
    before = target.group.cpu().total
    for _ in range(60):
        time.sleep(0.5)
        now = target.group.cpu().total
        if now - before < 10e6:  # 20 ms in a second
            return
        before = now
    raise MeasurementError("it is busy with clients that do not read")


HELD = (
    Idle("idle", "sessions that do nothing"),
    Idle("idle-tls", "the same under TLS", tls=True),
    Stuck(),
)
