"""``make profile``: what the running proxy does with its CPU time while it is loaded.

By default under cProfile: which functions are called how often in a session, and how long they take themselves. That
makes everything some times slower, and small functions more than large ones: read the calls, and the order.
``--sampler perf`` looks at the proxy from outside, at its full speed, and sees kernel, interpreter and libraries as C
functions; ``--sampler py-spy`` (pip install py-spy) does the same for Python functions.
"""

from __future__ import annotations

import argparse
import os
import pstats
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.accounting import accounting
from tests.bench.loads import LOADS, LoadScenario
from tests.bench.proxies import Proxies
from tests.bench.report import short, table
from tests.bench.run import cpus, say
from tests.bench.scenario import Loader, MeasurementError
from tests.bench.setups import DEFAULT
from tests.bench.target import Target, limit_files
from tests.bench.tools import CompileError, tools
from tests.peers.process import REPOSITORY, PeerMissingError, require
from tests.peers.proxy import workers_of

# from SIGUSR2 on, so that what it does at the start is not in it
_UNDER_CPROFILE = """
import asyncio, cProfile, pathlib, signal, sys, time
from popproxy.app.loop import run
from popproxy.app.service import Service
from popproxy.config.loader import load_file
profile = cProfile.Profile(time.process_time)
signal.signal(signal.SIGUSR2, lambda *_: profile.enable())

async def serve():
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    service = Service(load_file(pathlib.Path(sys.argv[2])))
    await service.start()
    await told.wait()
    profile.disable()
    await service.stop()

run(serve())
profile.dump_stats(sys.argv[1])
"""


@contextmanager
def running(tree: Path, result: Path | None) -> Iterator[tuple[Loader, Target]]:
    """popproxy before the synthetic server; under cProfile if there is a file for what that says."""
    programs = tools()
    with tempfile.TemporaryDirectory(prefix="popproxy-profile-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        proxies = Proxies(directory, programs, accounting(), cpus())
        target = proxies.popproxy("popproxy", tree).target(DEFAULT)
        assert target is not None
        if result is not None:
            python, *_, config = target.commands[0]  # python -m popproxy serve -c FILE
            target.commands[0] = [python, "-c", _UNDER_CPROFILE, str(result), config]
        try:
            proxies.backend.start()
            target.start()
            yield Loader(programs), target
        finally:
            target.stop()
            proxies.backend.stop()


def under_cprofile(tree: Path, scenario: LoadScenario, seconds: float, top: int) -> str:
    """A table of functions by their own time."""
    with tempfile.TemporaryDirectory(prefix="popproxy-profile-") as directory:
        Path(directory).chmod(0o777)  # the proxy writes its result as nobody
        result = Path(directory) / "profile"
        with running(tree, result) as (loader, target):
            os.kill(target.processes[0].pid, signal.SIGUSR2)
            done = _load(loader, target, scenario, seconds)
        rows = []
        for (file, line, function), (_, calls, own, _, _) in pstats.Stats(str(result)).stats.items():  # type: ignore[attr-defined]
            rows.append((own, calls, f"{_place(file, line)}{function}"))
    rows.sort(reverse=True)
    head = ["function", "own us", "calls", "us a call"]
    return f"{done} x {scenario.title}; for each:\n\n" + table(
        head,
        [
            [name, short(own * 1e6 / done), short(calls / done), short(own * 1e6 / calls)]
            for own, calls, name in rows[:top]
        ],
    )


def by_perf(tree: Path, scenario: LoadScenario, seconds: float, top: int) -> str:
    """The C functions that the CPU was in, kernel included."""
    perf = require("perf")
    with tempfile.TemporaryDirectory(prefix="popproxy-profile-") as directory, running(tree, None) as (loader, target):
        data = f"{directory}/perf.data"
        # cpu-clock: virtual machines have no hardware counters
        options = ["-e", "cpu-clock", "-F", "4999", "-p", str(workers_of(target.processes[0].pid)[0]), "-o", data]
        with subprocess.Popen([perf, "record", "-q", *options], stderr=subprocess.DEVNULL) as recorder:
            _load(loader, target, scenario, seconds)
            recorder.terminate()
        keys = ["--sort", "dso,symbol", "--percent-limit", "0.3"]
        report = [perf, "report", "--stdio", "-q", "-i", data, *keys]
        shown = subprocess.run(report, capture_output=True, text=True, check=False)
    lines = [line.rstrip() for line in shown.stdout.splitlines() if line.strip()]
    return "\n".join(lines[:top]) + "\n" if lines else shown.stderr


def by_py_spy(tree: Path, scenario: LoadScenario, seconds: float, top: int) -> str:
    """The Python functions that were running, system calls included."""
    py_spy = Path(sys.executable).with_name("py-spy")
    if not py_spy.exists():
        raise PeerMissingError("py-spy is not installed; run: .venv/bin/pip install py-spy")
    with tempfile.TemporaryDirectory(prefix="popproxy-profile-") as directory, running(tree, None) as (loader, target):
        raw = Path(directory) / "stacks"
        options = [
            "-f",
            "raw",
            "-r",
            "500",
            "-d",
            f"{seconds:g}",
            "-o",
            str(raw),
            "-p",
            str(workers_of(target.processes[0].pid)[0]),
        ]
        with subprocess.Popen([py_spy, "record", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            _load(loader, target, scenario, seconds)
        samples: Counter[str] = Counter()
        for line in raw.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            samples[stack.rpartition(";")[2]] += int(count)
    total = sum(samples.values())
    rows = [[function, f"{100 * count / total:.1f}"] for function, count in samples.most_common(top)]
    return f"{total} samples\n\n" + table(["function", "%"], rows)


def _load(loader: Loader, target: Target, scenario: LoadScenario, seconds: float) -> int:
    """How many sessions or operations were done."""
    load = loader.run(target, scenario.mode, *scenario.options, "-u", scenario.user, seconds=seconds, tls=scenario.tls)
    if not (load.sessions or load.ops):
        raise MeasurementError("nothing was done")
    return load.sessions or load.ops


def _place(file: str, line: int) -> str:
    """Where a function stands, as short as it can be."""
    if not line:
        return ""  # built in
    path = Path(file)
    parts = path.parts
    short_path = "/".join(parts[parts.index("popproxy", -3) :]) if "popproxy" in parts[-3:] else path.name
    return f"{short_path}:{line} "


def main(arguments: list[str] | None = None) -> int:
    """Prints the profile on standard output."""
    samplers = {"cprofile": under_cprofile, "perf": by_perf, "py-spy": by_py_spy}
    scenarios = {scenario.name: scenario for scenario in LOADS}
    parser = argparse.ArgumentParser(
        prog="make profile ARGS=...", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sampler", choices=samplers, default="cprofile")
    parser.add_argument("--scenario", choices=scenarios, default="sessions")
    parser.add_argument("--popproxy-tree", type=Path, default=REPOSITORY, metavar="PATH")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--top", type=int, default=40)
    options = parser.parse_args(arguments)
    limit_files()
    try:
        scenario = scenarios[options.scenario]
        print(samplers[options.sampler](options.popproxy_tree.resolve(), scenario, options.seconds, options.top))
    except (CompileError, MeasurementError, PeerMissingError) as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
