"""``python -m tests.bench.replicas``: what a session costs a replica that shares its state in Redis.

Beside it stands one that does not share. In each round both get the same load right after each other, in random order;
only the proxies' own CPU time counts.
Redis runs on the CPU of the load. The goal is that a session takes at most a tenth more.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.bench.accounting import accounting
from tests.bench.facts import facts
from tests.bench.loads import LOADS, LoadScenario
from tests.bench.proxies import Contender, Proxies
from tests.bench.report import ratio, summary, table
from tests.bench.run import cpus, say
from tests.bench.scenario import Loader, Measurement, MeasurementError
from tests.bench.setups import DEFAULT, SHARED
from tests.bench.target import TargetError, limit_files
from tests.bench.tools import CompileError, tools
from tests.peers.process import PeerMissingError
from tests.peers.redis import Redis

GOAL = 1.1
_AT_ONCE = ("256", "16", "1")
"""Sessions at a time: the fewer, the fewer logins ask Redis together."""


def scenarios() -> list[LoadScenario]:
    """Whole short sessions, so many at a time."""
    (sessions,) = (load for load in LOADS if load.name == "sessions")
    return [replace(sessions, name=f"{count} at a time", options=("-c", count)) for count in _AT_ONCE]


@contextmanager
def site(scale: float) -> Iterator[tuple[Contender, Loader]]:
    """popproxy in both set-ups, the server behind it, and a Redis. Raises TargetError and the like."""
    where = cpus()
    os.sched_setaffinity(0, where.load)  # also for Redis and the load generator
    limit_files()
    directory = Path(tempfile.mkdtemp(prefix="popproxy-bench-"))
    directory.chmod(0o755)
    loader = Loader(tools(), scale)
    proxies = Proxies(directory, loader.programs, accounting(), where)
    contender = proxies.popproxy("popproxy")
    try:
        with Redis() as redis:
            target = contender.target(SHARED)
            assert target is not None
            (target.directory / "redis.sock").symlink_to(redis.path)
            redis.path.chmod(0o777)
            proxies.backend.start()
            yield contender, loader
    finally:
        contender.stop()
        proxies.backend.stop()
        shutil.rmtree(directory, ignore_errors=True)


def measure(contender: Contender, loader: Loader, scenario: LoadScenario, setup: str) -> Measurement:
    """One load at one of the two. Raises MeasurementError, TargetError."""
    target = contender.target(setup)
    assert target is not None
    if not target.alive():
        target.start()
        loader.run(target, "churn", "-c", "16", seconds=0.5)
    return scenario.measure(loader, target)


def report(rows: Sequence[tuple[str, list[float], list[float]]]) -> str:
    """CPU for a session without and with Redis, and the ratios inside the rounds."""
    lines = []
    for name, without, shared in rows:
        inside = [a / b for a, b in zip(shared, without, strict=True)]
        goal = "met" if statistics.median(inside) <= GOAL else "MISSED"
        lines.append([name, summary(without), summary(shared), summary(inside, ratio), goal])
    return table(["sessions", "alone, CPU us", "with Redis, CPU us", "ratio (from-to)", f"{GOAL:g}"], lines)


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.replicas", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--scale", type=float, default=1.0, help="of the seconds of each load")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    measured: dict[tuple[str, str], list[float]] = {}
    wrong = 0
    try:
        with site(options.scale) as (contender, loader):
            for number in range(options.rounds):
                say(f"replicas, round {number + 1} of {options.rounds}")
                for scenario in scenarios():
                    for setup in random.sample((DEFAULT, SHARED), 2):
                        found = measure(contender, loader, scenario, setup)
                        wrong += found.lost + found.altered
                        measured.setdefault((scenario.name, setup), []).append(found.values["CPU"])
    except (CompileError, TargetError, PeerMissingError, MeasurementError) as error:
        say(str(error))
        return 1
    rows = [(one.name, measured[one.name, DEFAULT], measured[one.name, SHARED]) for one in scenarios()]
    print(f"{facts(accounting().words, (options.rounds, 0)).text()} {time.monotonic() - started:.0f} s.\n")
    print(report(rows), end="")
    print(f"\nSessions that were lost or altered: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
