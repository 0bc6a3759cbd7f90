"""What was logged is asked again, and what comes out otherwise is counted for what it is."""

from pathlib import Path
from typing import Any

import pytest

from app.pipelines.base import Prediction
from app.registry.loader import LoadedModel
from app.registry.sources import DirectorySource
from app.release.replay import Differences, Pace, Rescored, is_same, newest, rescore, steps, wholeness
from app.storage.database import Database
from tests.support.estimators import Brittle
from tests.support.logged import failed_row, row
from tests.support.releases import answered, fill, load, logged, write_line, write_pair, write_threshold
from tests.support.versions import LABELS, one_golden, write_version


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 and 2 of `toy`, which differ from 8 to 10."""
    folder = tmp_path_factory.mktemp("replay")
    write_pair(folder, second=8.0)
    return folder


@pytest.fixture(scope="module")
def first(root: Path) -> LoadedModel:
    """The champion."""
    return load(root, 1)


@pytest.fixture(scope="module")
def second(root: Path) -> LoadedModel:
    """The other one."""
    return load(root, 2)


def _replayed(model: LoadedModel, rows: list[Any], root: Path) -> Differences:
    differences = Differences()
    for rescored in rescore(model, rows, wholeness(DirectorySource(root), "toy")):
        differences.add(rescored)
    return differences


def test_flips_are_counted_by_pair_of_labels(root: Path, first: LoadedModel, second: LoadedModel) -> None:
    """Of x = 0 … 19 only 8 and 9 are small to the one and big to the other; their scores fall."""
    found = _replayed(second, [logged(values) for values in answered(first, range(20))], root).figures()
    assert (found["rows"], found["compared"], found["equal"]) == (20, 20, 18)
    assert found["flips"] == [{"was": "small", "is": "big", "rows": 2}]
    assert found["score_difference"]["count"] == 20
    assert found["score_difference"]["p5"] < -0.3


def test_a_version_agrees_with_itself(root: Path, first: LoadedModel) -> None:
    """Nothing differs, in any figure."""
    found = _replayed(first, [logged(values) for values in answered(first, range(200))], root).figures()
    assert (found["compared"], found["equal"], found["flips"]) == (200, 200, [])
    assert found["score_difference"]["mean"] == pytest.approx(0, abs=1e-12)
    assert 0 < found["latency_ms"]["now"]["count"] < 200
    assert found["latency_ms"]["then"]["p50"] == 1.5


def test_what_the_log_has_not_kept_is_not_asked(root: Path, first: LoadedModel) -> None:
    """A hash is no input, a missing one neither; and a row on which the model failed has no answer to compare."""
    rows = [
        logged(row(0, inputs={"x": "hmac-sha256:" + "0" * 64})),
        logged(row(1, inputs={})),
        logged(failed_row(2, inputs={"x": 1.0})),
        logged(row(3, inputs={"x": 1.0}, output="small", label="small")),
    ]
    found = _replayed(first, rows, root)
    assert (found.rows, found.unasked, found.failed_then, found.compared, found.equal) == (4, 2, 1, 1, 1)


def test_a_field_that_is_dropped_is_missing_even_where_it_may_be(tmp_path: Path) -> None:
    """A caller may have sent it."""
    write_threshold(tmp_path, 1, 10)
    source = DirectorySource(tmp_path)
    manifest = source.manifest("toy", 1)
    optional = manifest.fields[0].model_copy(update={"missing": "allow"})
    changed = manifest.model_copy(update={"fields": (optional,)})
    (tmp_path / "toy" / "1" / "manifest.json").write_bytes(changed.to_json())
    without = logged(row(0, inputs={}))
    assert wholeness(source, "toy")(without)
    (tmp_path / "toy" / "log.json").write_text('{"fields": {"x": "drop"}}')
    assert not wholeness(source, "toy")(without)


def test_what_is_refused_and_what_fails_are_two_things(root: Path, tmp_path: Path, first: LoadedModel) -> None:
    """A field that the version does not know; a value on which it raises, alone among others."""
    brittle = Brittle().fit([[0.0]], ["less", "more"])
    labels = LABELS.model_copy(update={"labels": ("less", "more")})
    write_version(tmp_path, brittle, outputs=labels, golden=one_golden("less"))
    rows = [logged(row(n, inputs={"x": float(n)}, output="less", label="less")) for n in (1, 13, 2)]
    rows.append(logged(row(3, inputs={"x": 1.0, "y": 1.0})))
    found = _replayed(load(tmp_path), rows, root)
    assert (found.refused, found.failed, found.equal) == (1, 1, 2)
    assert found.broken == 2


def test_numbers_are_compared_by_how_far_they_are_apart(tmp_path: Path) -> None:
    """Errors where the truth is known: the second version is off by x, and its answers by 10 % of the first's."""
    write_line(tmp_path, 1, 10.0)
    write_line(tmp_path, 2, 11.0)
    values = answered(load(tmp_path, 1), range(1, 21))
    rows = [logged(row, truth=10 * (place + 1)) for place, row in enumerate(values)]
    found = _replayed(load(tmp_path, 2), rows, tmp_path).figures()
    assert found["number_difference"]["mean"] == pytest.approx(10.5)
    assert found["shift"]["p95"] == pytest.approx(19.05 / 57.66, rel=1e-3)
    assert (found["feedback"]["worse"], found["feedback"]["better"]) == (20, 0)
    assert found["feedback"]["p_value"] == pytest.approx(2 / 2**20)
    assert found["feedback"]["mean_absolute_error"]["now"] == pytest.approx(10.5)


def test_right_and_wrong_are_counted_row_by_row() -> None:
    """The same rows, both answers."""
    differences = Differences()
    for place, (was, now) in enumerate([("a", "a"), ("a", "b"), ("b", "a"), ("b", "b"), ("b", "a")]):
        values = row(place, output=was, label=was, probabilities=None)
        differences.add(Rescored(logged(values, truth="a"), Prediction(now)))
    pairs = differences.pairs
    assert (pairs.both_right, pairs.only_then, pairs.only_now, pairs.both_wrong) == (1, 1, 2, 1)
    found = pairs.figures()
    assert (found["worse"], found["better"], found["accuracy"]["now"]["share"]) == (1, 2, 0.6)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [(1, 1.0, True), (1, True, False), (0, False, False), (True, True, True), ("1", 1, False), ("a", "a", True)],
)
def test_values_are_the_same_as_json_has_it(one: Any, other: Any, *, same: bool) -> None:
    """Whatever Python makes of true and 1."""
    assert is_same(one, other) is same


def test_the_newest_are_read_in_bounded_steps(database: Database) -> None:
    """Newest first, of one version, no more than asked for, over several pages."""
    fill(database, [row(n, version=1 + n % 2) for n in range(1_000)])
    found = list(newest(steps(database), "toy", 1, 450))
    assert [prediction.version for prediction in found] == [1] * 450
    assert [prediction.id for prediction in found] == sorted((prediction.id for prediction in found), reverse=True)
    assert found[0].at.microsecond == 998_000
    assert len(list(newest(steps(database), "toy", 2, 10_000))) == 500


def test_a_pace_rests_in_proportion(root: Path, first: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a quarter it rests three times as long as it has worked."""
    rested: list[float] = []
    monkeypatch.setattr("time.sleep", rested.append)
    Pace(0.25).rest(0.5)
    Pace().rest(0.5)
    assert rested == [1.5]
    list(rescore(first, [logged(row(0, inputs={"x": 1.0}))], wholeness(DirectorySource(root), "toy"), Pace(0.25)))
    assert len(rested) == 2
