"""The plain counters and histograms show what the library's own would show."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry.metrics import ROWS, SECONDS
from app.telemetry.plain import PlainCounter, PlainHistogram

_LABELS = st.tuples(st.sampled_from(["iris", 'a "quoted"\nname\\', ""]), st.sampled_from(["1", "2"]))
_AMOUNTS = st.lists(st.tuples(_LABELS, st.integers(0, 1000) | st.floats(0, 1e6)), max_size=30)
_NAMES = ("model", "version")


def _samples(registry: CollectorRegistry) -> dict[tuple[str, str, str, Any], float]:
    """All that a scraper reads, by family, type, sample and labels; without the moment of a series' making."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (
            family.name,
            f"{family.type} {family.documentation}",
            sample.name,
            frozenset(sample.labels.items()),
        ): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@settings(max_examples=60, deadline=None)
@given(amounts=_AMOUNTS)
def test_a_counter_is_the_librarys(amounts: list[tuple[tuple[str, str], float]]) -> None:
    """Name, type, text, labels and values, for the same additions."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    plain = PlainCounter("rows", "Rows answered.", _NAMES, ours)
    library = Counter("rows", "Rows answered.", _NAMES, registry=theirs)
    for labels, amount in amounts:
        plain.labels(*labels).inc(amount)
        library.labels(*labels).inc(amount)
    assert _samples(ours) == pytest.approx(_samples(theirs))
    assert bool(_samples(ours)) == bool(amounts)


@pytest.mark.parametrize("bounds", [SECONDS, ROWS])
def test_a_histogram_is_the_librarys(bounds: tuple[float, ...]) -> None:
    """Also where an observation is just at a bound, and beyond the last."""

    @settings(max_examples=60, deadline=None)
    @given(
        values=st.lists(
            st.tuples(_LABELS, st.floats(0, 1e5) | st.sampled_from(bounds) | st.integers(0, 20_000)), max_size=40
        )
    )
    def check(values: list[tuple[tuple[str, str], float]]) -> None:
        ours, theirs = CollectorRegistry(), CollectorRegistry()
        plain = PlainHistogram("seconds", "Time it took.", _NAMES, bounds, ours)
        library = Histogram("seconds", "Time it took.", _NAMES, buckets=bounds, registry=theirs)
        for labels, value in values:
            plain.labels(*labels).observe(value)
            library.labels(*labels).observe(value)
        assert _samples(ours) == pytest.approx(_samples(theirs))
        assert bool(_samples(ours)) == bool(values)

    check()


def test_a_series_is_shown_from_the_moment_that_it_is_asked_for() -> None:
    """At zero, so that a rate over its first increase is one."""
    registry = CollectorRegistry()
    PlainCounter("rows", "Rows.", ["model"], registry).labels("iris")
    assert registry.get_sample_value("rows_total", {"model": "iris"}) == 0


@pytest.mark.parametrize("first", [PlainCounter, Counter])
def test_a_name_is_given_once(first: Any) -> None:
    """Whether its first owner is one of ours or of the library's; a histogram takes the names of its samples, too."""
    registry = CollectorRegistry()
    if first is Counter:
        Counter("rows", "Rows.", registry=registry)
        Counter("seconds_count", "A name that a histogram would have.", registry=registry)
    else:
        PlainCounter("rows", "Rows.", [], registry)
        PlainCounter("seconds_count", "A name that a histogram would have.", [], registry)
    for again in (
        lambda: PlainCounter("rows", "Rows.", [], registry),
        lambda: Counter("rows", "Rows.", registry=registry),
    ):
        with pytest.raises(ValueError, match="Duplicated"):
            again()
    PlainHistogram("time", "Time.", [], SECONDS, registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Histogram("time", "Time.", registry=registry)


def test_the_newer_format_can_be_made_of_it() -> None:
    """A scraper that asks for OpenMetrics gets it."""
    registry = CollectorRegistry()
    PlainCounter("rows", "Rows.", ["model"], registry).labels("iris").inc()
    PlainHistogram("seconds", "Time.", ["model"], SECONDS, registry).labels("iris").observe(0.3)
    text = generate_open_metrics(registry).decode()  # type: ignore[no-untyped-call]
    assert 'rows_total{model="iris"} 1.0' in text
    assert 'seconds_bucket{le="+Inf",model="iris"} 1.0' in text
