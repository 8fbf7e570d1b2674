"""``python -m tests.fuzz``: atheris, which looks for inputs that reach new code, at one target."""

from __future__ import annotations

import argparse
import faulthandler
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import atheris

SLOW = 0.1
"""Seconds of CPU time that one input may take, without the slowness that instrumentation and the other load add."""


def main() -> None:
    """Runs until so many inputs were tried; ends with status 77 at the first that raises."""
    options = _options()
    if options.target is None:
        from tests.fuzz.targets import TARGETS

        sys.exit(_every(sorted(TARGETS), sys.argv[1:]))
    # what is imported in here is watched
    with atheris.instrument_imports(include=["popproxy", "tests.fuzz"]):
        from tests.fuzz.targets import PLANTED, TARGETS
    known = TARGETS | {"planted": PLANTED}
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
        if spent > max(slowest, SLOW):  # on a machine that others use even this time has its bad moments
            started = time.thread_time()
            target.run(data)
            spent = min(spent, time.thread_time() - started)
        if spent > slowest:
            slowest, found = spent, data
        if tried == options.runs:
            # libFuzzer ends the process without a word to Python
            print(
                f"{options.target}: {tried} inputs, none raised; the slowest took {slowest * 1000:.1f} ms", flush=True
            )
            if slowest > SLOW:
                print(f"{options.target}: too slow: {found!r}", flush=True)

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
            "-print_final_stats=1",
            str(seeds),
        ]  # fmt: skip
        options.found.mkdir(parents=True, exist_ok=True)
        atheris.Setup(arguments, one)
        atheris.Fuzz()


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
    return parser.parse_args()


if __name__ == "__main__":
    main()
