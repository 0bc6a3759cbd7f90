"""Families of metrics as plain data, which can be written down, added up, and shown.

One series is its label values and a few numbers: those of a counter or a gauge are its value; those of a histogram are
the observations in each bucket by itself, and their sum.
"""

from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple, TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Series: TypeAlias = dict[tuple[str, ...], tuple[float, ...]]


class Family(NamedTuple):
    """All series of one name; `name` without the suffix `_total`, `bounds` for a histogram."""

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...]
    series: Series

    @property
    def grows(self) -> bool:
        """Whether its numbers only grow."""
        return self.kind != "gauge"

    def fits(self, other: "Family") -> bool:
        """Whether the numbers of the other mean the same, in the same order."""
        return (self.kind, self.labels, self.bounds) == (other.kind, other.labels, other.bounds)


def families_of(collector: Collector) -> list[Family]:
    """What a collector of the library's has, without the moment at which a series began.

    A family without series is left out: the library does not tell its labels.
    """
    return [_family(metric) for metric in collector.collect() if metric.samples]


def _family(metric: Metric) -> Family:
    if metric.type not in {"counter", "gauge"}:
        raise TypeError(f"{metric.name}: a {metric.type} of the library's cannot be added up; there is PlainHistogram")
    samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
    series: Series = {tuple(sample.labels.values()): (sample.value,) for sample in samples}
    return Family(metric.name, metric.type, metric.documentation, tuple(samples[0].labels), (), series)


def metric_of(family: Family) -> Metric:
    """The same as the library has it."""
    name, kind, meaning, labels, bounds, series = family
    if kind == "histogram":
        names = [*map(floatToGoString, bounds), "+Inf"]
        histogram = HistogramMetricFamily(name, meaning, labels=labels)
        for values, numbers in series.items():
            buckets = list(zip(names, accumulate(numbers[:-1]), strict=True))
            histogram.add_metric(values, buckets, numbers[-1])
        return histogram
    simple = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, meaning, labels=labels)
    for values, numbers in series.items():
        simple.add_metric(values, numbers[0])
    return simple


class _Given(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return map(metric_of, self._families)


def exposition_of(families: Iterable[Family]) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry()
    registry.register(_Given(families))
    return generate_latest(registry)
