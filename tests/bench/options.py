"""The command line of the benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.bench.proxies import PEERS

_QUICK_TARGETS = ("nginx", "haproxy", "dovecot")


def read_options(arguments: list[str] | None, scenarios: list[str], quick: list[str]) -> argparse.Namespace:
    """What it says, with the defaults of --quick (those `quick` of all scenarios) or of the full run filled in."""
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=...",
        description="popproxy beside nginx, HAProxy, Dovecot and Perdition in one interleaved run.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="two short rounds of the most: to see that it works, not how fast")
    add("--rounds", type=int, help="of the scenarios in which the proxies take turns (8; quick: 2)")
    add("--alone-rounds", type=int, help="of those in which each runs alone (2; quick: 1)")
    add("--scenarios", type=_some_of(scenarios), metavar="A,B", help=", ".join(scenarios))
    add("--targets", type=_some_of(PEERS), metavar="A,B", help=f"beside popproxy: {', '.join(PEERS)}")
    add(
        "--popproxy-tree", type=Path, action="append", metavar="PATH",
        help="a checkout instead of this one; several are compared with each other, and with --targets only if named",
    )  # fmt: skip
    add("--scale", type=float, help="times the duration of each load (1; quick: 0.25)")
    add("--idle", type=int, help="most sessions that are held at a time (9000; quick: 1000)")
    add("--json", type=Path, metavar="FILE", help="keep the results")
    add("--from", type=Path, metavar="FILE", dest="kept", help="measure nothing, print what --json has kept")
    add("--markdown", action="store_true", help="print only what belongs into the README")
    add("--keep", action="store_true", help="keep configurations and logs")
    options = parser.parse_args(arguments)
    targets = [] if options.popproxy_tree else list(PEERS)
    defaults: dict[str, object] = {
        "rounds": 8, "alone_rounds": 2, "scale": 1.0, "idle": 9000, "scenarios": scenarios, "targets": targets,
    }  # fmt: skip
    if options.quick:
        few = [name for name in targets if name in _QUICK_TARGETS]
        defaults |= {"rounds": 2, "alone_rounds": 1, "scale": 0.25, "idle": 1000, "scenarios": quick, "targets": few}
    for name, default in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    return options


def _some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    choices = list(known)

    def split(text: str) -> list[str]:
        words = [word for word in text.split(",") if word]
        if wrong := [word for word in words if word not in choices]:
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: choose from {', '.join(choices)}")
        return words

    return split
