"""``python -m tests.bench.sharing``: what a session costs where state is shared: with replicas in Redis, with a worker.

Beside these stands a popproxy that shares nothing. In each round all get the same load right after each other, in
random order; only the proxies' own CPU time counts, that of the supervisor included. Redis runs
on the CPU of the load. The goal is that a session takes at most a tenth more.
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
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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
from tests.bench.setups import DEFAULT, SHARED, WORKERS
from tests.bench.target import TargetError, limit_files
from tests.bench.tools import CompileError, tools
from tests.peers.process import PeerMissingError
from tests.peers.redis import Redis

GOAL = 1.1
_AT_ONCE = ("256", "16", "1")
"""Sessions at a time: the fewer, the fewer logins ask Redis together."""
_SETUPS = {DEFAULT: "alone", SHARED: "with Redis", WORKERS: "two workers"}


def scenarios() -> list[LoadScenario]:
    """Whole short sessions, so many at a time."""
    (sessions,) = (load for load in LOADS if load.name == "sessions")
    return [replace(sessions, name=f"{count} at a time", options=("-c", count)) for count in _AT_ONCE]


@contextmanager
def site(scale: float) -> Iterator[tuple[Contender, Loader]]:
    """popproxy in all set-ups, the server behind it, and a Redis. Raises TargetError and the like."""
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
    """One load at one of them. Raises MeasurementError, TargetError."""
    target = contender.target(setup)
    assert target is not None
    if not target.alive():
        target.start()
        loader.run(target, "churn", "-c", "16", seconds=0.5)
    return scenario.measure(loader, target)


def report(measured: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """CPU for a session by the load and the set-up, and the ratios inside the rounds."""
    lines = []
    for name, by_setup in measured.items():
        alone = by_setup[DEFAULT]
        line = [name, summary(list(alone))]
        for setup in (SHARED, WORKERS):
            inside = [a / b for a, b in zip(by_setup[setup], alone, strict=True)]
            goal = "met" if statistics.median(inside) <= GOAL else "MISSED"
            line += [summary(list(by_setup[setup])), summary(inside, ratio), goal]
        lines.append(line)
    titles = [title for setup in (SHARED, WORKERS) for title in (_SETUPS[setup], "ratio (from-to)", f"{GOAL:g}")]
    return table(["sessions", "alone, CPU us", *titles], lines)


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sharing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--scale", type=float, default=1.0, help="of the seconds of each load")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    measured: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    wrong = 0
    try:
        with site(options.scale) as (contender, loader):
            for number in range(options.rounds):
                say(f"sharing, round {number + 1} of {options.rounds}")
                for scenario in scenarios():
                    for setup in random.sample(list(_SETUPS), len(_SETUPS)):
                        found = measure(contender, loader, scenario, setup)
                        wrong += found.lost + found.altered
                        measured[scenario.name][setup].append(found.values["CPU"])
    except (CompileError, TargetError, PeerMissingError, MeasurementError) as error:
        say(str(error))
        return 1
    print(f"{facts(accounting().words, (options.rounds, 0)).text()} {time.monotonic() - started:.0f} s.\n")
    print(report(measured), end="")
    print(f"\nSessions that were lost or altered: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
