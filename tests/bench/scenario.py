"""What all scenarios have in common: how they load a target, and what a measurement is."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.bench.target import Target
from tests.bench.tools import Tools

SETTLE = 0.15
"""Seconds for a proxy to finish its closes, before its CPU time is read."""


class MeasurementError(Exception):
    """A load could not be applied. The measurement is missing, and the run says so."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the load generator counted; ``tools/load.c`` says what each is."""

    sessions: int
    ops: int
    lost: int
    altered: int
    bytes: int
    seconds: float
    p50_us: float
    p99_us: float
    max_us: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """One scenario at one target, once. `values` by the names of the scenario's figures."""

    values: Mapping[str, float]
    lost: int = 0
    altered: int = 0


@dataclass(frozen=True, slots=True)
class Figure:
    """One column of a scenario's table."""

    name: str
    unit: str


class Described(Protocol):
    """What the tables show of a scenario.

    The first of `figures` is what ratios are made of; of all of them less is better, except for those whose unit ends
    in ``/s``. `setup`: which of its set-ups a proxy needs for it; those that have none are left out.
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def figures(self) -> tuple[Figure, ...]: ...

    @property
    def setup(self) -> str: ...


class Scenario(Described, Protocol):
    """One way to load a proxy. `alone`: each measurement has a fresh process, and no other proxy runs beside it."""

    @property
    def alone(self) -> bool: ...

    def measure(self, loader: Loader, target: Target) -> Measurement:
        """Load the running target. Raises MeasurementError."""
        ...


@dataclass
class Loader:
    """Runs the load generator. `scale` multiplies the seconds of each load, `most` limits held sessions."""

    programs: Tools
    scale: float = 1.0
    most: int = 9000
    complaints: list[str] = field(default_factory=list)  # what the load generator had to say

    def run(self, target: Target, mode: str, *options: str, seconds: float, tls: bool = False) -> Load:
        """One load from start to end. Raises MeasurementError."""
        command = [*self._command(target, mode, tls, options), "-t", f"{seconds * self.scale:g}"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds * self.scale + 90, check=False
            )
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"{mode} came to no end") from None
        return self._result(mode, target, done.stdout, done.stderr)

    @contextlib.contextmanager
    def held(self, target: Target, mode: str, *options: str, tls: bool = False) -> Iterator[Held]:
        """Sessions that wait while the block runs; `.load` is there after it. Raises MeasurementError."""
        with subprocess.Popen(
            self._command(target, mode, tls, options), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                assert process.stdout is not None
                ready = process.stdout.readline().split()
                if ready[:1] != ["READY"]:
                    raise MeasurementError(f"{mode}: no session was logged in")
                held = Held(int(ready[1]))
                yield held
                output, errors = process.communicate(timeout=120)  # closes stdin, and with it the wait ends
                held.load = self._result(mode, target, output, errors)
            except subprocess.TimeoutExpired:
                raise MeasurementError(f"{mode} came to no end") from None
            finally:
                process.kill()

    def _command(self, target: Target, mode: str, tls: bool, options: tuple[str, ...]) -> list[str]:
        port = target.ports.tls if tls else target.ports.plain
        return [str(self.programs.load), mode, str(port), *options, *(["-T"] if tls else [])]

    def _result(self, mode: str, target: Target, output: str, errors: str) -> Load:
        if errors:
            self.complaints.append(f"{target.name}, {mode}: {errors[:500].strip()}")
        lines = output.splitlines()
        if not lines:
            raise MeasurementError(f"{mode}: the load generator failed: {errors[:500]}")
        numbers: dict[str, Any] = json.loads(lines[-1])
        return Load(**numbers)


@dataclass
class Held:
    """Sessions that are being held: how many were logged in, and what became of them."""

    count: int
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A measurement with its place in the run; `missing` says why there is none."""

    scenario: str
    target: str
    round: int
    measurement: Measurement | None
    missing: str = ""


def settle() -> None:
    """Let the target finish what it is about."""
    time.sleep(SETTLE)
