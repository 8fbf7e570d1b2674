"""``python -m tests.fuzz``: atheris, which looks for inputs that reach new code, at one target."""

from __future__ import annotations

import argparse
import faulthandler
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import atheris

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

SLOW = 0.1
"""Seconds of CPU time that one input may take, in a process that watches no code."""
STATUS_SLOW = 78


def main() -> None:
    """Runs until so many inputs were tried; ends with status 77 at the first that raises."""
    options = _options()
    if options.target is None:
        from tests.fuzz.targets import TARGETS

        sys.exit(_every(sorted(TARGETS), sys.argv[1:]))
    if options.time is not None:
        from tests.fuzz.targets import PLANTED, TARGETS

        print(_seconds((TARGETS | PLANTED)[options.target], options.time.read_bytes()))
        return
    # what is imported in here is watched
    with atheris.instrument_imports(include=["popproxy", "tests.fuzz"]):
        from tests.fuzz.targets import PLANTED, TARGETS
    known = TARGETS | PLANTED
    if options.target not in known:
        sys.exit(f"there is no target {options.target}, but {', '.join(TARGETS)}")
    target = known[options.target]
    faulthandler.enable()
    tried, slowest, found = 0, 0.0, b""

    def one(data: bytes) -> None:
        nonlocal tried, slowest, found
        started = time.thread_time()
        target.run(data)
        spent = time.thread_time() - started
        tried += 1
        if spent > slowest:
            slowest, found = spent, data
        if tried == options.runs:
            # libFuzzer ends the process without a word to Python
            alone = _alone(options.target, found)
            slow = alone > SLOW
            print(
                f"{options.target}: {tried} inputs, none raised; the slowest took {slowest * 1000:.1f} ms,"
                f" {alone * 1000:.1f} ms without being watched", flush=True,
            )  # fmt: skip
            if slow:
                (options.found / f"slow-{options.target}").write_bytes(found)
                print(f"{options.target}: too slow: {found!r}", flush=True)
                os._exit(STATUS_SLOW)

    with tempfile.TemporaryDirectory(prefix="popproxy-fuzz-") as name:
        work = Path(name)
        seeds = options.corpus or work / "corpus"
        seeds.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(target.seeds):
            (seeds / f"seed-{number}").write_bytes(seed)
        words = work / "words"
        words.write_text("# what may be put in\n" + "".join(f'"{_quoted(word)}"\n' for word in target.words))
        arguments = [  # the timeout is of wall time, which is long where others have the processor
            sys.argv[0], f"-runs={options.runs}", f"-max_len={target.longest}", f"-dict={words}",
            f"-seed={options.seed}", f"-artifact_prefix={options.found}/", "-rss_limit_mb=2048", "-timeout=600",
            "-report_slow_units=600",
            "-print_final_stats=1",
            str(seeds),
        ]  # fmt: skip
        options.found.mkdir(parents=True, exist_ok=True)
        atheris.Setup(arguments, one)
        atheris.Fuzz()


def _seconds(target: Target, data: bytes) -> float:
    """The best of three: on a machine that others use even CPU time has its bad moments."""
    took = []
    for _ in range(3):
        started = time.thread_time()
        target.run(data)
        took.append(time.thread_time() - started)
    return min(took)


def _alone(target: str, data: bytes) -> float:
    """Seconds that an input takes where no code is watched."""
    with tempfile.NamedTemporaryFile(prefix="popproxy-fuzz-") as file:
        file.write(data)
        file.flush()
        command = [sys.executable, "-m", "tests.fuzz", target, "--time", file.name]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _every(targets: list[str], arguments: list[str]) -> int:
    """Each target in a process of its own, with nothing printed but its last line and what has gone wrong."""
    worst = 0
    for name in targets:
        run = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", name, *arguments], capture_output=True, text=True, check=False
        )
        print(
            run.stdout if run.returncode == 0 else f"{name}: status {run.returncode}\n{run.stdout}{run.stderr}", end=""
        )
        worst = max(worst, run.returncode)
    return worst


def _quoted(word: bytes) -> str:
    return "".join(f"\\x{octet:02x}" for octet in word)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=main.__doc__)
    parser.add_argument("target", nargs="?", help="all of them, one after the other, if none is named")
    parser.add_argument("--runs", type=int, default=2_000_000, help="inputs to try (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers; 0: by the clock")
    parser.add_argument("--corpus", type=Path, help="a directory that keeps the inputs which reach new code")
    parser.add_argument(
        "--found", type=Path, default=Path(tempfile.gettempdir()), help="for inputs that raise (%(default)s)"
    )
    parser.add_argument("--time", type=Path, help="only say how many seconds of CPU the input in this file takes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
