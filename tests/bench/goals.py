"""What popproxy has set itself, and whether a run has shown it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from tests.bench.kerberos_logins import GOAL as KERBEROS_GOAL
from tests.bench.report import Results, ratio, short, summary, table

ABSOLUTE = ""
"""Stands for the other proxy where a goal is a figure and not a ratio."""


@dataclass(frozen=True, slots=True)
class Goal:
    """The first figure of a scenario: at most `limit` times that of `other`, as the median of the rounds' ratios."""

    scenario: str
    other: str
    limit: float


GOALS = tuple(
    Goal(scenario, other, limit)
    for scenario, limits in {
        "sessions": {"nginx": 0.90, "nginx_64k": 1.0, "dovecot": 0.50, "perdition": 0.07, "haproxy": 1.20},
        "bulk": {"nginx": 0.70, "haproxy": 0.95, "dovecot": 0.70},
        "noop": {"nginx": 1.20, "dovecot": 0.60},
        "pipelined": {"nginx": 2.0, "perdition": 0.10},
        "idle": {ABSOLUTE: 3.3},
        "idle-tls": {ABSOLUTE: 19.0},
        "sessions-tls": {"haproxy": 1.20, "nginx": 1.05, "dovecot": 0.65},
        "bulk-tls": {"haproxy": 1.0, "nginx": 0.70, "dovecot": 0.10},
        "lone": {"haproxy": 1.15},
        "gssapi": {"dovecot": KERBEROS_GOAL},
        "kpop": {"dovecot": KERBEROS_GOAL},
    }.items()
    for other, limit in limits.items()
)


def goal_table(results: Results, subject: str) -> str:
    """Those goals that the run has measured: what was reached, and whether that is enough."""
    rows = []
    for goal in GOALS:
        scenario = next((scenario for scenario in results.scenarios if scenario.name == goal.scenario), None)
        if scenario is None:
            continue
        figure = scenario.figures[0]
        if goal.other == ABSOLUTE:
            reached = list(results.values(scenario.name, figure.name, subject).values())
            form, unit = short, f" {figure.unit}"
        else:
            reached = results.ratios(scenario.name, figure.name, subject, goal.other)
            form, unit = ratio, f" x {goal.other}"
        if reached:
            met = statistics.median(reached) <= goal.limit
            wanted = f"{form(goal.limit)}{unit}"
            rows.append([f"{scenario.name}, {figure.name}", wanted, summary(reached, form), "met" if met else "MISSED"])
    mine = [sample for sample in results.samples if sample.target == subject]
    lost = sum(sample.measurement.lost for sample in mine if sample.measurement)
    altered = sum(sample.measurement.altered for sample in mine if sample.measurement)
    rows.append(["sessions lost, altered", "0, 0", f"{lost}, {altered}", "MISSED" if lost or altered else "met"])
    return table(["goal", "at most", "reached", ""], rows)
