"""``make faults``: every fault at every point, in clear and under TLS, directly and through SSH."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from tests.bench.target import limit_files
from tests.faults.cases import registry
from tests.faults.peers import compare
from tests.faults.play import Verdict
from tests.faults.site import AT_ONCE, VARIANTS, Variant, play_all

BEYOND = 1.0
"""Seconds beyond its timeout in which a session must be over."""


def summary(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """The figures of one variant."""
    deaths = [verdict for verdict in verdicts if verdict.case.death]
    late = [verdict for verdict in verdicts if verdict.seconds > BEYOND]
    return {
        "cases": str(len(verdicts)),
        "right in all": str(sum(not verdict.wrong for verdict in verdicts)),
        "wrongly committed": str(sum(verdict.wrongly_committed for verdict in verdicts)),
        "false +OK": str(sum(verdict.false_ok for verdict in verdicts)),
        "cut shown whole": str(sum(verdict.shown_complete for verdict in verdicts)),
        "deaths told": f"{sum(verdict.told for verdict in deaths)}/{len(deaths)}",
        "late": str(len(late)),
        "latest s": f"{max(verdict.seconds for verdict in verdicts):.2f}",
    }


def main() -> int:
    """Plays the registry in the variants that are asked for. 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser(prog="make faults ARGS=...", description=__doc__)
    parser.add_argument(
        "--variant", action="append", choices=list(map(str, VARIANTS)), help="all four if none is named"
    )
    parser.add_argument(
        "--case", action="append", default=[], help="names of cases begin like this; all if none is named"
    )
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="cases at a time (%(default)s)")
    parser.add_argument("--peers", action="store_true", help="Dovecot, nginx and Perdition instead")
    options = parser.parse_args()
    limit_files()
    if options.peers:
        for peer in asyncio.run(compare()):
            print(
                f"{peer.name}: {peer.told} of {peer.deaths} deaths between replies told; of {peer.cases} cases", end=" "
            )
            print(f"{peer.committed} committed, {peer.cut_shown_whole} cut replies shown whole, {peer.hanging} hung")
        return 0
    cases = [case for case in registry() if not options.case or case.name.startswith(tuple(options.case))]
    rows: list[tuple[Variant, dict[str, str]]] = []
    status = 0
    for variant in VARIANTS:
        if options.variant and str(variant) not in options.variant:
            continue
        verdicts = asyncio.run(play_all(variant, cases, options.at_once))
        for verdict in verdicts:
            for wrong in verdict.wrong:
                print(f"{variant}: {verdict.case.name}: {wrong}")
            if verdict.seconds > BEYOND:
                print(f"{variant}: {verdict.case.name}: {verdict.seconds:.2f} s after its deadline")
            status |= bool(verdict.wrong or verdict.seconds > BEYOND)
        rows.append((variant, summary(verdicts)))
    print("| |", " | ".join(rows[0][1]), "|")
    print("|---|" + "---:|" * len(rows[0][1]))
    for variant, figures in rows:
        print(f"| {variant} |", " | ".join(figures.values()), "|")
    return status


if __name__ == "__main__":
    sys.exit(main())
