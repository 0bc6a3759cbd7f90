"""Counters and histograms for the way of a prediction: plain numbers, and each series is one thread's.

That is the event loop's, or for what a shadow has done the shadow's own.

The library's own take a lock and check their state with every observation, half a microsecond each; a prediction makes
six. These have the same names, labels and meaning in the exposition.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.telemetry.families import Family, Series, metric_of


class Count:
    """One time series that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add to it."""
        self.value += amount


class Distribution:
    """How many observations there were up to each bound, and their sum."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class PlainCounter(Collector):
    """A family of counts; `name` without the suffix `_total`."""

    def __init__(self, name: str, meaning: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._family = (name, meaning)
        self._labels = labels
        self._series: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """The series of these labels, from now on part of the exposition."""
        return self._series.setdefault(values, Count())

    def describe(self) -> Iterable[Metric]:
        """What the registry needs to know to refuse a second one of that name."""
        return [CounterMetricFamily(*self._family, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        """The exposition."""
        return [metric_of(self.family())]

    def family(self) -> Family:
        """The same as plain data."""
        name, meaning = self._family
        series: Series = {values: (count.value,) for values, count in list(self._series.items())}
        return Family(name, "counter", meaning, tuple(self._labels), (), series)


class PlainHistogram(Collector):
    """A family of distributions over the same bounds, ascending."""

    def __init__(
        self, name: str, meaning: str, labels: Sequence[str], bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._family = (name, meaning)
        self._labels = labels
        self._bounds = bounds
        self._series: dict[tuple[str, ...], Distribution] = {}
        registry.register(self)

    def labels(self, *values: str) -> Distribution:
        """The series of these labels, from now on part of the exposition."""
        return self._series.setdefault(values, Distribution(self._bounds))

    def describe(self) -> Iterable[Metric]:
        """What the registry needs to know to refuse a second one of that name."""
        return [HistogramMetricFamily(*self._family, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        """The exposition."""
        return [metric_of(self.family())]

    def family(self) -> Family:
        """The same as plain data."""
        name, meaning = self._family
        series: Series = {values: (*found.counts, found.total) for values, found in list(self._series.items())}
        return Family(name, "histogram", meaning, tuple(self._labels), tuple(self._bounds), series)
