"""Scenarios in which all proxies are up and take turns: whole sessions, messages, commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.accounting import Cpu
from tests.bench.scenario import Figure, Load, Loader, Measurement, MeasurementError, settle
from tests.bench.setups import DEFAULT, SPLICE
from tests.bench.target import Target

Value = Callable[[Cpu, Load], float]
DEPTH = 100
"""Commands in one write of the scenario pipelined."""


@dataclass(frozen=True)
class LoadScenario:
    """One call of the load generator, and the figures that come of it. `user` picks the maildrop: tools/maildrop.h."""

    name: str
    title: str
    mode: str
    options: tuple[str, ...]
    seconds: float
    columns: tuple[tuple[Figure, Value], ...]
    user: str = "s1"
    tls: bool = False
    alone: bool = False
    setup: str = DEFAULT

    @property
    def figures(self) -> tuple[Figure, ...]:
        return tuple(figure for figure, _ in self.columns)

    def measure(self, loader: Loader, target: Target) -> Measurement:
        before = target.group.cpu()
        load = loader.run(target, self.mode, *self.options, "-u", self.user, seconds=self.seconds, tls=self.tls)
        settle()
        cpu = target.group.cpu() - before
        try:
            values = {figure.name: value(cpu, load) for figure, value in self.columns}
        except ZeroDivisionError:
            raise MeasurementError(f"{self.name}: nothing was done") from None
        return Measurement(values, load.lost, load.altered)


_SESSION: tuple[tuple[Figure, Value], ...] = (
    (Figure("CPU", "us"), lambda cpu, load: cpu.total / 1e3 / load.sessions),
    (Figure("user", "us"), lambda cpu, load: cpu.total / 1e3 / load.sessions * cpu.user_share),
    (Figure("system", "us"), lambda cpu, load: cpu.total / 1e3 / load.sessions * (1 - cpu.user_share)),
    (Figure("rate", "sessions/s"), lambda cpu, load: load.sessions / load.seconds),
    (Figure("median", "ms"), lambda cpu, load: load.p50_us / 1e3),
)
_BULK: tuple[tuple[Figure, Value], ...] = (
    (Figure("CPU", "s/GB"), lambda cpu, load: cpu.total / load.bytes),
    (Figure("rate", "MB/s"), lambda cpu, load: load.bytes / 1e6 / load.seconds),
)
_NOOP: tuple[tuple[Figure, Value], ...] = (
    (Figure("CPU", "us"), lambda cpu, load: cpu.total / 1e3 / load.ops),
    (Figure("median", "us"), lambda cpu, load: load.p50_us),
    (Figure("p99", "us"), lambda cpu, load: load.p99_us),
)
_PIPELINED: tuple[tuple[Figure, Value], ...] = (
    (Figure("CPU", "us"), lambda cpu, load: cpu.total / 1e3 / load.ops / DEPTH),
    (Figure("rate", "RETR/s"), lambda cpu, load: load.ops * DEPTH / load.seconds),
)
_ALONE: tuple[tuple[Figure, Value], ...] = (
    (Figure("median", "ms"), lambda cpu, load: load.p50_us / 1e3),
    (Figure("p99", "ms"), lambda cpu, load: load.p99_us / 1e3),
)

LOADS = (
    LoadScenario("sessions", "whole short sessions, 256 at a time", "churn", ("-c", "256"), 2, _SESSION),
    LoadScenario("sessions-tls", "the same under TLS, 64 at a time", "churn", ("-c", "64"), 2, _SESSION, tls=True),
    LoadScenario("lone", "the same, one at a time", "churn", ("-c", "1"), 1, _ALONE),
    LoadScenario("bulk", "messages of 10 MB, 4 at a time", "bulk", ("-c", "4"), 1.5, _BULK, user="b1"),
    LoadScenario(
        "bulk-splice", "the same, moved inside the kernel", "bulk", ("-c", "4"), 1.5, _BULK, user="b1", setup=SPLICE
    ),
    LoadScenario("bulk-tls", "the same under TLS", "bulk", ("-c", "4"), 1.5, _BULK, user="b1", tls=True),
    LoadScenario("noop", "NOOP in lock-step, 64 sessions", "noop", ("-c", "64"), 1, _NOOP),
    LoadScenario(
        "pipelined", "RETR of 1 KB, 100 in one write", "pipe", ("-c", "2", "-p", str(DEPTH)), 1, _PIPELINED, user="m1"
    ),
)
