"""``python -m tests.bench``: popproxy beside nginx, HAProxy, Dovecot and Perdition in one interleaved run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.bench.loads import LOADS
from tests.bench.proxies import PEERS, Proxies
from tests.bench.report import Results
from tests.bench.run import Plan, Run, say
from tests.bench.scenario import Scenario
from tests.bench.target import Target, TargetError
from tests.bench.tools import CompileError
from tests.peers.process import REPOSITORY, PeerMissingError

SCENARIOS: tuple[Scenario, ...] = LOADS
"""All there are, in the order of the tables."""


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints tables. Returns 1 if a session was lost, an octet altered, or a measurement failed."""
    options = read_arguments(arguments)
    trees = named_trees(options.popproxy_tree or [REPOSITORY])
    names = [*trees, *options.targets]

    def targets(proxies: Proxies) -> list[Target]:
        own = [proxies.popproxy(name, tree) for name, tree in trees.items()]
        return [*own, *(proxies.peer(name) for name in options.targets)]

    scenarios = [scenario for scenario in SCENARIOS if scenario.name in options.scenarios]
    plan = Plan(scenarios, targets, options.rounds, options.alone_rounds, options.scale, options.idle, options.keep)
    try:
        run = Run(plan)
    except CompileError as error:
        say(str(error))
        return 1
    status = 0
    try:
        run.carry_out()
    except (TargetError, PeerMissingError) as error:
        say(str(error))
        status = 1
    except KeyboardInterrupt:
        status = 130
    results = Results(scenarios, names, run.samples)
    print(results.figures())
    print(results.ratio_table(names[0]))
    print(results.losses(), end="")
    for complaint in run.loader.complaints:
        say(complaint)
    return status or any(s.measurement is None or s.measurement.lost or s.measurement.altered for s in run.samples)


def named_trees(trees: list[Path]) -> dict[str, Path]:
    """Checkouts by the names they get in the tables."""
    if len(trees) == 1:
        return {"popproxy": trees[0].resolve()}
    return {f"popproxy({tree.resolve().name})": tree.resolve() for tree in trees}


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """What the command line says, with the defaults of --quick and of the full run filled in."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--quick", action="store_true", help="two short rounds: to see that it works, not how fast")
    parser.add_argument("--rounds", type=int, help="of the scenarios in which the proxies take turns (8; quick: 2)")
    parser.add_argument("--alone-rounds", type=int, help="of those in which they run alone (2; quick: 1)")
    parser.add_argument("--scenarios", type=one_of(names), default=names, metavar="A,B", help=f"of {', '.join(names)}")
    parser.add_argument(
        "--targets", type=one_of(PEERS), metavar="A,B",
        help=f"beside popproxy, of {', '.join(PEERS)} (all; none with --popproxy-tree)",
    )  # fmt: skip
    parser.add_argument(
        "--popproxy-tree", type=Path, action="append", metavar="PATH",
        help="a checkout instead of this one; several are compared with each other",
    )  # fmt: skip
    parser.add_argument("--scale", type=float, help="times the duration of each load (1; quick: 0.4)")
    parser.add_argument("--idle", type=int, help="most sessions that are held at a time (9000; quick: 1000)")
    parser.add_argument("--keep", action="store_true", help="keep configurations and logs")
    options = parser.parse_args(arguments)
    defaults = (2, 1, 0.4, 1000) if options.quick else (8, 2, 1.0, 9000)
    for name, default in zip(("rounds", "alone_rounds", "scale", "idle"), defaults, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, default)
    if options.targets is None:
        options.targets = [] if options.popproxy_tree else list(PEERS)
    return options


def one_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """An argument parser's type: names with commas between."""

    choices = list(known)

    def split(text: str) -> list[str]:
        words = [word for word in text.split(",") if word]
        if wrong := [word for word in words if word not in choices]:
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: choose from {', '.join(choices)}")
        return words

    return split


if __name__ == "__main__":
    sys.exit(main())
