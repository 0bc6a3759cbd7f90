"""What several workers have counted is added up as if one had counted it all."""

import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry.families import Family, exposition_of, families_of
from app.telemetry.merging import Published, inherit, merge
from app.telemetry.metrics import ROWS, Metrics
from app.telemetry.plain import PlainCounter, PlainHistogram

_SLOTS = 3
_AMOUNTS = st.integers(0, 5) | st.floats(0, 1e9) | st.sampled_from([0.1, 1e-9, 1 / 3, 5000.0])
_SLOT = st.integers(0, _SLOTS - 1)
_STEPS = st.lists(
    st.tuples(st.just("count"), _SLOT, st.sampled_from("abc"), _AMOUNTS)
    | st.tuples(st.just("replace"), _SLOT, st.sampled_from("abc"), _AMOUNTS),
    max_size=60,
)


@dataclass
class _Worker:
    """One that counts and publishes as a real one does, without the memory in between."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    inherited: list[Family] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counter = PlainCounter("counted", "Counted.", ["key"], self.registry)
        self.histogram = PlainHistogram("seen", "Seen.", ["key"], ROWS, self.registry)

    def count(self, key: str, amount: float) -> None:
        self.counter.labels(key).inc(amount)
        self.histogram.labels(key).observe(amount)

    def published(self) -> Published:
        return Published([self.counter.family(), self.histogram.family()], self.inherited)


def _values(families: list[Family]) -> dict[str, float]:
    return {
        sample.name + str(sample.labels): sample.value
        for family in text_string_to_metric_families(exposition_of(families).decode())
        for sample in family.samples
    }


@settings(max_examples=150, deadline=None)
@given(steps=_STEPS)
def test_counts_are_the_sum_of_all_and_never_fall(steps: list[tuple[str, int, str, float]]) -> None:
    """Not by a last digit, whoever counts, dies and is replaced by one that was forked with counts already."""
    workers = [_Worker() for _ in range(_SLOTS)]
    counted, observed = Counter[str](), Counter[str]()
    shown: dict[str, float] = {}
    for what, slot, key, amount in steps:
        if what == "count":
            workers[slot].count(key, amount)
            counted[key] += amount  # type: ignore[assignment]
            observed[key] += 1
        else:
            former, workers[slot] = workers[slot].published(), _Worker()
            workers[slot].count(key, amount)
            workers[slot].inherited = inherit(former, workers[slot].published().own)
        alive = [(worker.published(), worker is not workers[0]) for worker in workers]
        found = _values(merge(alive, {}))
        assert all(found[name] >= value for name, value in shown.items())
        shown = found
    for key, times in observed.items():
        labels = str({"key": key})
        assert shown["counted_total" + labels] == pytest.approx(counted[key], rel=1e-9, abs=1e-4)
        assert shown["seen_sum" + labels] == pytest.approx(counted[key], rel=1e-9, abs=1e-4)
        assert shown["seen_count" + labels] == times == shown["seen_bucket" + str({"key": key, "le": "+Inf"})]


def _gauge(value: float, *labels: str) -> list[Family]:
    return [Family("level", "gauge", "Level.", ("key",), (), {labels or ("a",): (value,)})]


@pytest.mark.parametrize(("rule", "value"), [(sum, 12.0), (max, 9.0), (min, 3.0)])
def test_a_gauge_is_merged_by_its_rule_over_those_that_live(rule: object, value: float) -> None:
    """The dead count for nothing."""
    slots = [(Published(_gauge(level), []), level < 10) for level in (9, 3, 100, 0.5 + 10)]
    (family,) = merge(slots, {"level": rule})  # type: ignore[dict-item]
    assert family.series == {("a",): (value,)}


def test_families_and_series_of_which_one_worker_alone_knows_are_shown() -> None:
    """A model that only one of them has answered for."""
    other = Family("other", "counter", "Other.", (), (), {(): (4,)})
    slots = [(Published(_gauge(1, "a"), []), True), (Published([*_gauge(2, "b"), other], []), True)]
    assert [family.series for family in merge(slots, {})] == [{("a",): (1,), ("b",): (2,)}, {(): (4,)}]


def test_a_worker_with_other_buckets_does_not_spoil_the_others() -> None:
    """One of a release that measures in another way is left out of that family."""
    one = Family("seen", "histogram", "Seen.", (), (1.0,), {(): (1, 2, 3.0)})
    other = Family("seen", "histogram", "Seen.", (), (1.0, 2.0), {(): (1, 1, 1, 3.0)})
    assert merge([(Published([one], []), True), (Published([other], []), True)], {}) == [one]
    assert inherit(Published([other], []), [one]) == [one._replace(series={(): (-1, -2, -3.0)})]


def test_every_gauge_says_how_it_is_merged() -> None:
    """The library's own as well as ours."""
    metrics = Metrics()
    gauges = {family.name for family in metrics.registry.collect() if family.type == "gauge"}
    assert gauges == set(metrics.merges)


def test_a_histogram_of_the_librarys_is_refused() -> None:
    """Its buckets are cumulative, and not on the way of a prediction."""
    registry = CollectorRegistry()
    library = Histogram("seen", "Seen.", registry=registry)
    with pytest.raises(TypeError, match="seen"):
        families_of(library)


def test_the_plain_data_of_all_instruments_say_what_the_registry_says() -> None:
    """Every family that has a series, with the same values."""
    metrics = Metrics()
    metrics.record_http("GET", "/v2/catalog", 200, 0.1)
    metrics.predictions.labels("iris", "1", "setosa").inc(2)
    metrics.runtime_fallbacks.labels("iris", "1").inc()
    metrics.ready.set(1)
    ours = _values(metrics.families())
    theirs = {
        sample.name + str(sample.labels): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert ours.keys() == theirs.keys()
    moving = ("process_", "python_gc")
    assert all(math.isclose(ours[key], value) for key, value in theirs.items() if not key.startswith(moving))
