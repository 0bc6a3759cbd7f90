"""A split of callers is arithmetic: near its weight, the same everywhere, and a greater weight only adds keys."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from app.inference.traffic import Split, Traffic, hindrance, takes_all_of
from app.manifest import InputField, TrafficRules
from app.registry.entries import ModelEntry, VersionEntry
from app.registry.loader import load_version
from app.registry.registry import ModelRegistry
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.telemetry.metrics import Metrics
from tests.inference.conftest import OURS, Book
from tests.support.estimators import Slow
from tests.support.manifests import make_manifest
from tests.support.server import ROOT, clean_environment
from tests.support.versions import NUMBER, X, one_golden, write_classifier, write_version

WEIGHTS = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)


def _split(weight: float, **changes: Any) -> Split:
    return Split("toy", 2, TrafficRules(challenger_weight=weight, **changes))


def _taken(split: Split, keys: int) -> list[bool]:
    return [split.takes(b"caller %d" % n) for n in range(keys)]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_share_of_keys_is_the_weight(weight: float) -> None:
    """Within a percentage point of 20,000 keys; and none, or all, at the ends."""
    share = sum(_taken(_split(weight), 20_000)) / 20_000
    assert share == weight if weight in (0, 1) else abs(share - weight) < 0.01


@given(key=st.binary(max_size=50), weights=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_a_greater_weight_moves_nobody_back(key: bytes, weights: list[float]) -> None:
    """Whoever has the challenger keeps it."""
    less, more = weights
    assert not _split(less).takes(key) or _split(more).takes(key)


def test_another_process_comes_to_the_same() -> None:
    """Nothing of it depends on the seed of Python's own hashes, nor on what has come before."""
    code = "from tests.inference.test_traffic import _split, _taken; print(_taken(_split(0.3), 200))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean_environment(PYTHONHASHSEED="7"),
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(_taken(_split(0.3), 200))


def test_the_next_challenger_gets_other_callers() -> None:
    """Else it would be the same people each time who are tried on."""
    rules = TrafficRules(challenger_weight=0.5)
    both = zip(_taken(Split("toy", 2, rules), 4_000), _taken(Split("toy", 3, rules), 4_000), strict=True)
    assert 0.2 < sum(one and other for one, other in both) / 4_000 < 0.3


def _changed(field: InputField, **changes: Any) -> InputField:
    return field.model_copy(update=changes)


A = InputField(name="a", dtype="float")
KIND = InputField(name="k", dtype="category", categories=("x", "y"))
MORE_KINDS = _changed(KIND, categories=("x", "y", "z"))
TEXT = InputField(name="t", dtype="text", max_length=10)
LONGER_TEXT = _changed(TEXT, max_length=20)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([A, KIND], [KIND, A], True),
        ([A], [_changed(A, minimum=1.0, maximum=2.0, description="d")], True),
        ([A], [A, KIND], False),
        ([A, KIND], [A], False),
        ([_changed(A, dtype="integer")], [A], False),
        ([_changed(A, missing="allow")], [A], True),
        ([A], [_changed(A, missing="allow")], False),
        ([MORE_KINDS], [KIND], True),
        ([KIND], [MORE_KINDS], False),
        ([A, LONGER_TEXT], [A, TEXT], True),
        ([A, TEXT], [A, LONGER_TEXT], False),
    ],
)
def test_inputs_fit_when_no_row_would_be_refused(one: Any, other: Any, *, expected: bool) -> None:
    """A row that the one takes is never refused by the other, and none of its fields is unknown there."""
    assert takes_all_of(make_manifest(*one), make_manifest(*other)) is expected


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    """Version 1 is the champion, 2 the challenger and the shadow; 3 takes another field, and 4 answers numbers."""
    root: Path = tmp_path_factory.mktemp("traffic")
    write_classifier(root)
    write_classifier(root, version=2, big=5)
    other = one_golden(0.0, y=0.0)
    fields = (_changed(X, name="y"),)
    write_version(
        root, Slow().fit(None, None), version=3, task="regression", outputs=NUMBER, golden=other, fields=fields
    )
    number = one_golden(0.0, x=0.0)
    write_version(root, Slow().fit(None, None), version=4, task="regression", outputs=NUMBER, golden=number)
    models = {n: load_version(DirectorySource(root), "toy", n, Trust(OURS)) for n in (1, 2, 3, 4)}
    versions = {n: VersionEntry(n, "serving", model.manifest, model) for n, model in models.items()}
    aliases = {"champion": 1, "challenger": 2, "shadow": 2}
    return ModelEntry("toy", versions, aliases, traffic=TrafficRules(challenger_weight=0.5))


def _pointing(entry: ModelEntry, **aliases: int) -> ModelEntry:
    return replace(entry, aliases={**entry.aliases, **aliases})


def test_what_keeps_a_version_from_having_rows_is_named(entry: ModelEntry) -> None:
    """Each by a stable code; a shadow may have other inputs."""
    assert (hindrance(entry, "challenger"), hindrance(entry, "shadow")) == (None, None)
    assert hindrance(_pointing(entry, challenger=1), "challenger") == "same_version"
    assert hindrance(_pointing(entry, challenger=9), "challenger") == "not_served"
    assert hindrance(_pointing(entry, champion=9), "challenger") == "no_champion"
    assert hindrance(_pointing(entry, challenger=4), "challenger") == "other_task"
    assert hindrance(_pointing(entry, champion=4, challenger=3), "challenger") == "other_inputs"
    assert hindrance(_pointing(entry, champion=4, shadow=3), "shadow") is None
    loading = {**entry.versions, 2: VersionEntry(2, "loading")}
    assert hindrance(replace(entry, versions=loading), "challenger") == "loading"
    by_field = replace(entry, traffic=TrafficRules(challenger_weight=0.5, sticky_by="field:y"))
    assert hindrance(by_field, "challenger") == "unknown_field"


def test_an_operator_hears_once_that_a_challenger_gets_nothing(entry: ModelEntry) -> None:
    """In the log once, in the metrics as long as it is so, and that it is over."""
    book, metrics = Book(), Metrics()
    traffic = Traffic(cast("ModelRegistry", book), metrics)

    def stopped() -> list[str]:
        return [sample.labels["reason"] for sample in _samples(metrics) if sample.name == "presage_traffic_stopped"]

    with capture_logs() as logs:
        for challenger in (4, 4, 2):
            book.write(_pointing(entry, challenger=challenger))
            assert (traffic.split("toy") is None) == (challenger == 4)
            assert stopped() == ["other_task"] * (challenger == 4)
        assert traffic.challenger("toy") is entry.versions[2].model
        book.write(replace(entry, aliases={"champion": 1}))
        assert traffic.split("toy") is None
        assert traffic.challenger("toy") is None
    assert [line["event"] for line in logs] == ["traffic_stopped", "traffic_free"]


def _samples(metrics: Metrics) -> Iterator[Any]:
    return (sample for family in metrics.registry.collect() for sample in family.samples)
