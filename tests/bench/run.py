"""One run: all targets up, loaded in turn; then, one by one, what must be measured alone."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.accounting import accounting
from tests.bench.proxies import Contender, Cpus, Proxies
from tests.bench.scenario import Loader, MeasurementError, Sample, Scenario, settle
from tests.bench.target import Target, limit_files
from tests.bench.tools import tools


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: `rounds` of the scenarios in which targets take turns, `alone_rounds` of the others."""

    scenarios: Sequence[Scenario]
    contenders: Callable[[Proxies], list[Contender]]
    rounds: int
    alone_rounds: int
    scale: float
    most_idle: int
    keep: bool = False


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def cpus() -> Cpus:
    """The last CPU for the proxies, the first for the load; with one alone, both share it."""
    available = sorted(os.sched_getaffinity(0))
    return Cpus(proxy={available[-1]}, load={available[0]})


class Run:
    """Carries out a plan. `samples` is what there is of it so far, even after an interruption."""

    def __init__(self, plan: Plan) -> None:
        self.samples: list[Sample] = []
        self.accounting = accounting()
        self.loader = Loader(tools(), plan.scale, plan.most_idle)
        self._plan = plan
        self._cpus = cpus()

    def carry_out(self) -> None:
        """Measures everything; the targets have ended when it returns. KeyboardInterrupt ends it early."""
        os.sched_setaffinity(0, self._cpus.load)  # also for the load generator
        limit_files()
        directory = Path(tempfile.mkdtemp(prefix="popproxy-bench-"))
        directory.chmod(0o755)
        proxies = Proxies(directory, self.loader.programs, self.accounting, self._cpus)
        contenders: list[Contender] = []
        for sig in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(sig, lambda *_: sys.exit(1))
        try:
            contenders += self._plan.contenders(proxies)
            proxies.backend.start()
            self._in_turn(contenders)
            self._one_by_one(contenders)
        finally:
            with uninterrupted():
                for contender in contenders:
                    contender.stop()
                proxies.backend.stop()
                if self._plan.keep:
                    say(f"configuration and logs are in {directory}")
                else:
                    shutil.rmtree(directory, ignore_errors=True)

    def _in_turn(self, contenders: list[Contender]) -> None:
        scenarios = [scenario for scenario in self._plan.scenarios if not scenario.alone]
        for number in range(self._plan.rounds if scenarios else 0):
            say(f"round {number + 1} of {self._plan.rounds}")
            for target, scenario in _turns(contenders, scenarios):
                if not target.alive():
                    self._start_warm(target)
                self._measure(scenario, target, number)
        for contender in contenders:
            contender.stop()

    def _start_warm(self, target: Target) -> None:
        """So that nothing that is done once, at the start or by the first sessions, is measured in the first round."""
        target.start()
        with contextlib.suppress(MeasurementError):  # its first measurement will fail, too, and say so
            self.loader.run(target, "churn", "-c", "16", seconds=0.5)
        settle()

    def _one_by_one(self, contenders: list[Contender]) -> None:
        scenarios = [scenario for scenario in self._plan.scenarios if scenario.alone]
        for number in range(self._plan.alone_rounds):
            for scenario in scenarios:
                say(f"{scenario.name}, round {number + 1} of {self._plan.alone_rounds}")
                for target, _ in _turns(contenders, [scenario]):
                    target.start()
                    self._measure(scenario, target, number)
                    target.stop()

    def _measure(self, scenario: Scenario, target: Target, number: int) -> None:
        try:
            sample = Sample(scenario.name, target.name, number, scenario.measure(self.loader, target))
            if not target.alive():
                raise MeasurementError(f"it has ended: {target.output()}")
        except MeasurementError as error:
            sample = Sample(scenario.name, target.name, number, None, str(error))
            say(f"  {target.name}: {error}")
        self.samples.append(sample)


def _turns(contenders: Sequence[Contender], scenarios: Sequence[Scenario]) -> Iterator[tuple[Target, Scenario]]:
    """Each scenario at all proxies right after each other, in random order: the machine's moods hit all alike."""
    for scenario in scenarios:
        for contender in random.sample(contenders, len(contenders)):
            target = contender.target(scenario.setup)
            if target is not None:
                yield target, scenario


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets a clean-up finish."""
    before = {sig: signal.signal(sig, signal.SIG_IGN) for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
