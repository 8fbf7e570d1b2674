"""From values to what Prometheus reads: the part that a process's own metrics and merged ones have in common."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from math import inf

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from popproxy import __version__
from popproxy.observe.metric_families import PREFIX, Family

Values = Mapping[str | tuple[str, ...], float]
"""By label values in the order of the family's labels; a single one stands for itself."""
Buckets = tuple[Sequence[float], float]
"""How many observations fell into each bucket, the one beyond all bounds last; and their sum in seconds."""


class Exposition(Collector):
    """Values of all families, to be rendered."""

    def __init__(self, families: Sequence[Family]) -> None:
        self.families = families
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def values_of(self, family: Family) -> tuple[Values, int]:
        """The values of a counter or gauge, and how many keys had no place in it."""
        raise NotImplementedError

    def histograms_of(self, family: Family) -> Mapping[str | tuple[str, ...], Buckets]:
        """The observations of a histogram."""
        raise NotImplementedError

    def strays(self) -> int:
        """Keys without a place, beyond those that `values_of` tells."""
        return 0

    def process(self) -> Iterable[Metric]:
        """What Linux knows of the process."""
        return ()

    def started(self) -> float | None:
        """When the counting began, in seconds since 1970, if that is known."""
        return None

    def family(self, name: str) -> Family:
        """The family with this attribute."""
        return next(family for family in self.families if family.attribute == name)

    def values(self, name: str) -> Values:
        """The values of the family with this attribute; of several processes also those of earlier configurations."""
        return self.values_of(self.family(name))[0]

    def render(self, accept: str) -> tuple[bytes, str]:
        """Everything in the format that the HTTP header Accept asks for, and its Content-Type. Any thread may ask."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client for each scrape."""
        yield from self.process()
        strays = self.strays()
        for family in self.families:
            if family.kind == "histogram":
                yield self._histogram(family)
                continue
            values, lost = self.values_of(family)
            strays += lost
            metric = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(
                PREFIX + family.name, family.help, labels=list(family.labels)
            )
            for key, value in values.items():
                if value or not family.sparse or key in family.always:
                    metric.add_metric([key] if isinstance(key, str) else list(key), value)
            yield metric
        yield _build_info()
        yield CounterMetricFamily(
            PREFIX + "metrics_strays", "Label values outside of their closed sets: a bug.", value=strays
        )

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are checked by the tests, not at the registration."""
        return ()

    def _histogram(self, family: Family) -> Metric:
        metric = HistogramMetricFamily(PREFIX + family.name, family.help, labels=list(family.labels))
        for key, (counts, total) in self.histograms_of(family).items():
            buckets, seen = [], 0.0
            for bound, count in zip((*family.bounds, inf), counts, strict=True):
                seen += count
                buckets.append(("+Inf" if bound == inf else str(float(bound)), seen))
            metric.add_metric([key] if isinstance(key, str) else list(key), buckets, total)
        return metric


def _build_info() -> Metric:
    metric = InfoMetricFamily(PREFIX + "build", "Version of popproxy and of Python.")
    metric.add_metric([], {"version": __version__, "python": platform.python_version()})
    return metric
