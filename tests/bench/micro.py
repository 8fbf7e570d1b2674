"""``python -m tests.bench.micro``: nanoseconds per operation of popproxy's cores, here or beside another checkout.

Each checkout has a worker process (``cores.py``); they take turns, so that the machine's moods hit both alike. Figures
are medians over the repeats, with the spread; ratios are medians of the ratios inside a repeat.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.cores import CORES
from tests.bench.report import ratio, summary, table
from tests.peers.process import REPOSITORY

REPEAT = 0.05
"""Seconds that the calls of one repeat take together."""


class CoreError(Exception):
    """A checkout cannot run this core; the text is what its Python said."""


class Worker:
    """A Python that times the cores of one checkout."""

    def __init__(self, tree: Path) -> None:
        own = tree / ".venv/bin/python"
        script = Path(__file__).with_name("cores.py")
        self._process = subprocess.Popen(
            [str(own if own.exists() else sys.executable), "-P", str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(tree)},
        )  # fmt: skip

    def seconds(self, name: str, calls: int) -> float:
        """For so many calls of the core. Raises CoreError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, calls]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if isinstance(answer, str):
            raise CoreError(answer)
        return float(answer)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def calibrated(worker: Worker, name: str) -> int:
    """How many calls fill one repeat."""
    calls = 1
    while (taken := worker.seconds(name, calls)) < REPEAT / 4:
        calls *= 4
    return max(1, int(calls * REPEAT / taken))


def timed(workers: list[Worker], name: str, repeats: int) -> list[list[float]]:
    """Nanoseconds per unit, by worker and repeat. Raises CoreError."""
    calls = calibrated(workers[0], name)
    units = calls * CORES[name].count
    found: list[list[float]] = [[] for _ in workers]
    for number in range(repeats):
        order = list(zip(workers, found, strict=True))
        for worker, values in order if number % 2 else reversed(order):
            values.append(worker.seconds(name, calls) * 1e9 / units)
    return found


@contextlib.contextmanager
def working(trees: list[Path]) -> Iterator[list[Worker]]:
    """A worker for each checkout."""
    with contextlib.ExitStack() as stack:
        workers = []
        for tree in trees:
            workers.append(Worker(tree.resolve()))
            stack.callback(workers[-1].close)
        yield workers


def main(arguments: list[str] | None = None) -> int:
    """Prints the table on standard output."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.micro", description=__doc__)
    parser.add_argument("--against", type=Path, metavar="PATH", help="another checkout of popproxy")
    parser.add_argument("--only", default="", metavar="TEXT", help="cores whose name contains this")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(arguments)
    trees = [REPOSITORY, *([options.against] if options.against else [])]
    head = ["core", "unit", "ns", *(["ns there", "here to there"] if options.against else [])]
    rows, failures = [], []
    with working(trees) as workers:
        for name, core in CORES.items():
            if options.only not in name:
                continue
            try:
                found = timed(workers, name, options.repeats)
            except CoreError as error:
                failures.append(f"{name}: {error}")
                continue
            row = [name, core.unit, *(summary(values) for values in found)]
            if options.against:
                row.append(summary([here / there for here, there in zip(*found, strict=True)], ratio))
            rows.append(row)
    print(table(head, rows) if rows else "", end="")
    for failure in failures:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
