"""A process's metrics as a snapshot to be sent, and merged snapshots as metrics to be shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from popproxy.observe.metric_exposition import Buckets, Exposition, Values
from popproxy.observe.metric_families import Family
from popproxy.observe.metric_merge import PROCESS, STRAYS, Snapshot, keyed, labels
from popproxy.observe.metrics import Metrics


def snapshot(metrics: Metrics) -> Snapshot:
    """Everything that `metrics` holds, without the zeros that go without saying. Any thread may ask."""
    taken: Snapshot = {kind: {} for kind in ("counter", "histogram", "sum", "max", "min")}
    strays = 0
    for family in metrics.families:
        if family.kind == "histogram":
            taken["histogram"][family.name] = {
                keyed(key): [*counts, total]
                for key, (counts, total) in metrics.histograms_of(family).items()
                if any(counts)
            }
            continue
        kind = "counter" if family.kind == "counter" else family.merged
        values, lost = metrics.values_of(family)
        strays += lost
        taken[kind][family.name] = {keyed(key): float(value) for key, value in values.items() if value or kind == "min"}
    taken["counter"][STRAYS] = {"": strays}
    for metric in metrics.process():
        if metric.name in PROCESS:
            taken[PROCESS[metric.name]][metric.name] = {"": metric.samples[0].value}
    return taken


class MergedMetrics(Exposition):
    """Shows `merged` snapshots, in the families of `own`, the metrics of this process."""

    def __init__(self, own: Metrics, merged: Snapshot) -> None:
        super().__init__(own.families)
        self._own = own
        self._merged = merged

    def values_of(self, family: Family) -> tuple[Values, int]:
        """Zero where nobody has said anything else."""
        kind = "counter" if family.kind == "counter" else family.merged
        told = self._merged[kind].get(family.name, {})
        ours, _ = self._own.values_of(family)
        return {**dict.fromkeys(ours, 0.0), **{labels(key, len(family.labels)): told[key] for key in told}}, 0

    def histograms_of(self, family: Family) -> Mapping[str | tuple[str, ...], Buckets]:
        """Empty where nobody has observed anything."""
        nothing = ([0] * (len(family.bounds) + 1), 0.0)
        told = self._merged["histogram"].get(family.name, {})
        observed = {
            labels(key, len(family.labels)): (row[:-1], row[-1])
            for key, row in told.items()
            if len(row) == len(family.bounds) + 2
        }
        return {**dict.fromkeys(self._own.histograms_of(family), nothing), **observed}

    def strays(self) -> int:
        """Of all processes."""
        return int(self._merged["counter"].get(STRAYS, {}).get("", 0))

    def started(self) -> float | None:
        """When the supervisor was started."""
        told = self._merged["min"].get("process_start_time_seconds")
        return None if told is None else float(told[""])

    def process(self) -> Iterable[Metric]:
        """Of all processes together."""
        for metric in self._own.process():
            kind = PROCESS.get(metric.name, "")
            told = self._merged.get(kind, {}).get(metric.name)
            if told is not None:
                make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
                yield make(metric.name, metric.documentation, value=told[""])
