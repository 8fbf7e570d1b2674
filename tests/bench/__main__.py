"""``python -m tests.bench``: popproxy beside nginx, HAProxy, Dovecot and Perdition in one interleaved run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.bench import results_file
from tests.bench.facts import Facts, facts
from tests.bench.goals import goal_table
from tests.bench.held import HELD
from tests.bench.kerberos import LOGINS, TICKETS
from tests.bench.kerberos import samples as ticket_samples
from tests.bench.loads import LOADS
from tests.bench.options import read_options
from tests.bench.own import OWN_SCENARIOS
from tests.bench.proxies import Contender, Proxies
from tests.bench.report import Results
from tests.bench.run import Plan, Run, say
from tests.bench.scenario import Described, Scenario
from tests.bench.target import TargetError
from tests.bench.tools import CompileError
from tests.peers.process import REPOSITORY, PeerMissingError

SCENARIOS: tuple[Scenario, ...] = (*LOADS, *HELD, *OWN_SCENARIOS)
ALL: tuple[Described, ...] = (*SCENARIOS, *TICKETS)
"""In the order of the tables."""
QUICK = [*(scenario.name for scenario in LOADS), "idle", "idle-tls"]


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints tables. Returns 1 if a session was lost, an octet altered, or a measurement failed."""
    options = read_options(arguments, [scenario.name for scenario in ALL], QUICK)
    if options.kept:
        try:
            where, targets, samples = results_file.load(options.kept)
        except (OSError, ValueError) as error:
            say(str(error))
            return 1
        show(Results(ALL, targets, samples), where, options.markdown)
        return 0
    return measure(options)


def measure(options: argparse.Namespace) -> int:
    """Carries out what the options say; prints what there is of it, even after an interruption."""
    trees = named_trees(options.popproxy_tree or [REPOSITORY])
    names = [*trees, *options.targets]

    def contenders(proxies: Proxies) -> list[Contender]:
        own = [proxies.popproxy(name, tree) for name, tree in trees.items()]
        return [*own, *map(proxies.peer, options.targets)]

    scenarios = [scenario for scenario in SCENARIOS if scenario.name in options.scenarios]
    tickets = [scenario for scenario in TICKETS if scenario.name in options.scenarios and not options.popproxy_tree]
    rounds = (options.rounds, options.alone_rounds)
    status = 0
    try:
        run = Run(Plan(scenarios, contenders, *rounds, options.scale, options.idle, options.keep))
    except CompileError as error:
        say(str(error))
        return 1
    try:
        run.carry_out()
        run.samples += ticket_samples(tickets, options.rounds, int(LOGINS * options.scale)) if tickets else []
    except (TargetError, PeerMissingError) as error:
        say(str(error))
        status = 1
    except KeyboardInterrupt:
        status = 130
    where = facts(run.accounting.words, rounds)
    if options.json:
        results_file.save(options.json, where, names, run.samples)
    show(Results([*scenarios, *tickets], names, run.samples), where, options.markdown)
    for complaint in run.loader.complaints:
        say(complaint)
    return status or any(s.measurement is None or s.measurement.lost or s.measurement.altered for s in run.samples)


def show(results: Results, where: Facts, markdown: bool) -> None:
    """On standard output: everything, or what the README shows."""
    subject = results.targets[0]
    if not markdown:
        print(results.figures())
    print(where.text(), end="\n\n")
    print(results.ratio_table(subject))
    if subject == "popproxy":
        print(goal_table(results, subject))
    if markdown:
        print(results.own_tables())
    print(results.losses(), end="")


def named_trees(trees: list[Path]) -> dict[str, Path]:
    """Checkouts by the names they get in the tables, which are also names of directories."""
    if len(trees) == 1:
        return {"popproxy": trees[0].resolve()}
    named: dict[str, Path] = {}
    for tree in map(Path.resolve, trees):
        name = f"popproxy({tree.name})"
        named[name if name not in named else f"popproxy({len(named)}-{tree.name})"] = tree
    return named


if __name__ == "__main__":
    sys.exit(main())
