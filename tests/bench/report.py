"""Tables of a run: what each target took, and the ratios inside one round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from tests.bench.scenario import Described, Sample
from tests.bench.setups import DEFAULT

Row = list[str]


def short(value: float) -> str:
    """Three digits or so."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def ratio(value: float) -> str:
    """Two digits behind the point, three where that would be little."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def summary(values: Sequence[float], form: Callable[[float], str] = short) -> str:
    """Median, and from where to where."""
    median = form(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({form(min(values))}-{form(max(values))})"


def table(head: Row, rows: Iterable[Row]) -> str:
    """In Markdown, the columns aligned; numbers stand right."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = [("-" * width if number == 0 else "-" * (width - 1) + ":") for number, width in enumerate(widths)]
    lines.insert(1, rule)
    return "".join(
        "| "
        + " | ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |\n"
        for line in lines
    )


class Results:
    """The samples of a run by scenario, target and round."""

    def __init__(self, scenarios: Sequence[Described], targets: Sequence[str], samples: Sequence[Sample]) -> None:
        self.scenarios = scenarios
        self.targets = targets
        self.samples = samples

    def values(self, scenario: str, figure: str, target: str) -> dict[int, float]:
        """By round."""
        return {
            sample.round: sample.measurement.values[figure]
            for sample in self.samples
            if sample.scenario == scenario and sample.target == target and sample.measurement is not None
        }

    def ratios(self, scenario: str, figure: str, subject: str, other: str) -> list[float]:
        """`subject` to `other` inside each round in which both were measured."""
        mine, theirs = self.values(scenario, figure, subject), self.values(scenario, figure, other)
        return [mine[number] / theirs[number] for number in mine if theirs.get(number, 0) > 0]

    def figures(self) -> str:
        """For each scenario what each target took: median, and from where to where."""
        parts = []
        for scenario in self.scenarios:
            rows = []
            for target in self.targets:
                cells = [list(self.values(scenario.name, figure.name, target).values()) for figure in scenario.figures]
                if any(cells):
                    rows.append([target, *(summary(cell) if cell else "-" for cell in cells)])
            if rows:
                head = [scenario.name, *(f"{figure.name} {figure.unit}" for figure in scenario.figures)]
                parts.append(f"{scenario.title}\n\n" + table(head, rows))
        return "\n".join(parts)

    def ratio_table(self, subject: str) -> str:
        """The ratios of the first figure of each scenario."""
        others = [target for target in self.targets if target != subject]
        rows = []
        for scenario in self.scenarios:
            figure = scenario.figures[0]
            found = [self.ratios(scenario.name, figure.name, subject, other) for other in others]
            if any(found):
                cells = [summary(ratios, ratio) if ratios else "-" for ratios in found]
                rows.append([f"{scenario.name}, {figure.name}", *cells])
        return table([f"{subject} to", *others], rows) if rows else ""

    def own_tables(self) -> str:
        """What only the first target was measured with; scenarios with the same figures share a table."""
        subject, groups = self.targets[0], dict[tuple[str, ...], list[Row]]()
        for scenario in self.scenarios:
            values = [list(self.values(scenario.name, figure.name, subject).values()) for figure in scenario.figures]
            if scenario.setup != DEFAULT and all(values):
                head = tuple(f"{figure.name} {figure.unit}" for figure in scenario.figures)
                groups.setdefault(head, []).append([scenario.name, *map(summary, values)])
        return "\n".join(table([subject, *head], rows) for head, rows in groups.items())

    def losses(self) -> str:
        """One line about sessions lost and octets altered, and which measurements are missing."""
        measured = [sample for sample in self.samples if sample.measurement is not None]
        lost = _by_target((sample.target, sample.measurement.lost) for sample in measured if sample.measurement)
        altered = _by_target((sample.target, sample.measurement.altered) for sample in measured if sample.measurement)
        missing = [f"{s.scenario} at {s.target}: {s.missing}" for s in self.samples if s.measurement is None]
        return (
            f"sessions lost: {lost or 'none'}; sessions with altered octets: {altered or 'none'}; "
            f"measurements missing: {'; '.join(missing) or 'none'}\n"
        )


def _by_target(counts: Iterable[tuple[str, int]]) -> str:
    totals: dict[str, int] = {}
    for target, count in counts:
        totals[target] = totals.get(target, 0) + count
    return ", ".join(f"{target} {count}" for target, count in totals.items() if count)
