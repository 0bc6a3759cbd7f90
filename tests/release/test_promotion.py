"""Each check of the gate, by cases that are made by hand: what it lets pass, what it stops, and when it cannot say."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.manifest import InputField, Manifest, Outputs
from app.registry.loader import LoadedModel
from app.registry.sources import DirectorySource
from app.release.evidence import Check, Evidence, Limits
from app.release.promotion import Champion, Log, check_golden, check_latency, check_schema, examine
from app.release.replay import Pace, wholeness
from app.storage.queries import LoggedPrediction
from tests.support.estimators import Slow
from tests.support.logged import row
from tests.support.manifests import COUNT, FLAG, GAP, KIND, TEXT, make_manifest
from tests.support.manifests import NUMBER as LENGTH
from tests.support.releases import answered, load, logged, write_line, write_pair, write_threshold
from tests.support.versions import NUMBER, one_golden, write_version


def _changed(field: InputField, **changes: Any) -> InputField:
    return InputField(**{**field.model_dump(), **changes})


def _outputs(**changes: Any) -> Outputs:
    return Outputs(**{"target": "answer", "labels": ("no", "yes"), "probabilities": True, **changes})


FIELDS = (LENGTH, COUNT, KIND, FLAG, GAP)
COMPATIBLE: dict[str, tuple[InputField, ...]] = {
    "the same": FIELDS,
    "in another order": FIELDS[::-1],
    "a new field that may be missing": (*FIELDS, InputField(name="more", dtype="float", missing="allow")),
    "an integer becomes a float": (LENGTH, _changed(COUNT, dtype="float"), KIND, FLAG, GAP),
    "one more category": (LENGTH, COUNT, _changed(KIND, categories=("flat", "house", "hut")), FLAG, GAP),
    "a value may be missing": (_changed(LENGTH, missing="allow"), COUNT, KIND, FLAG, GAP),
    "another range in training": (_changed(LENGTH, minimum=0.0), COUNT, KIND, FLAG, GAP),
}
INCOMPATIBLE: dict[str, tuple[tuple[InputField, ...], str]] = {
    "a field is gone": ((LENGTH, COUNT, KIND, FLAG), "age is taken no more"),
    "a new field that must be given": ((*FIELDS, InputField(name="more", dtype="float")), "more is new and must"),
    "a float becomes an integer": (
        (_changed(LENGTH, dtype="integer"), COUNT, KIND, FLAG, GAP),
        "sepal length (cm) was float and is integer",
    ),
    "a boolean becomes a number": ((LENGTH, COUNT, KIND, _changed(FLAG, dtype="float"), GAP), "new was boolean"),
    "a category is gone": ((LENGTH, COUNT, _changed(KIND, categories=("flat",)), FLAG, GAP), "the categories house"),
    "a value may no longer be missing": ((LENGTH, COUNT, KIND, FLAG, _changed(GAP, missing="refuse")), "could be miss"),
}


@pytest.mark.parametrize("fields", COMPATIBLE.values(), ids=COMPATIBLE)
def test_inputs_that_still_are_taken_pass(fields: Sequence[InputField]) -> None:
    """Callers of the champion notice nothing."""
    check = check_schema(make_manifest(*fields), make_manifest(*FIELDS))
    assert check.passed is True, check.detail


@pytest.mark.parametrize(("fields", "told"), INCOMPATIBLE.values(), ids=INCOMPATIBLE)
def test_inputs_that_are_taken_no_more_fail(fields: Sequence[InputField], told: str) -> None:
    """And the field is named."""
    check = check_schema(make_manifest(*fields), make_manifest(*FIELDS))
    assert check.passed is False
    assert told in check.detail
    assert len(check.figures["problems"]) == 1


def test_a_text_may_get_longer_and_not_shorter() -> None:
    """Of its greatest length."""
    longer = make_manifest(_changed(TEXT, max_length=30), container="texts")
    now = make_manifest(TEXT, container="texts")
    assert check_schema(longer, now).passed is True
    assert "could have 30 characters" in check_schema(now, longer).detail


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (_outputs(labels=("yes", "no")), None),
        (_outputs(labels=("no", "yes", "maybe")), "the labels maybe are new"),
        (_outputs(labels=("no",)), "the labels yes are gone"),
        (_outputs(probabilities=False), "no probabilities any more"),
    ],
)
def test_the_form_of_the_answer_stays(outputs: Outputs, told: str | None) -> None:
    """Labels as a set, and probabilities where there were some."""
    check = check_schema(make_manifest(*FIELDS, outputs=outputs), make_manifest(*FIELDS, outputs=_outputs()))
    assert check.passed is (told is None)
    assert told is None or told in check.detail


def test_labels_that_are_numbers_are_no_truths() -> None:
    """1 and true are two labels; and probabilities may be added."""
    truths, numbers = _outputs(labels=(False, True)), _outputs(labels=(0, 1), probabilities=False)
    found = check_schema(make_manifest(*FIELDS, outputs=truths), make_manifest(*FIELDS, outputs=numbers))
    assert found.figures["problems"] == ["the labels 0, 1 are gone", "the labels False, True are new"]


def test_another_task_is_another_model() -> None:
    """A regression does not follow a classifier."""
    regression = make_manifest(*FIELDS, task="regression", outputs=Outputs(target="answer"))
    assert "the task was classification" in check_schema(regression, make_manifest(*FIELDS)).detail


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`toy` 1; 2, which differs from it nearly nowhere; 3, which does from 5 on; 4, which takes another field."""
    folder = tmp_path_factory.mktemp("promotion")
    write_pair(folder)
    write_threshold(folder, 3, 5.0)
    return folder


@pytest.fixture(scope="module")
def versions(root: Path) -> dict[int, LoadedModel]:
    """All, loaded."""
    return {version: load(root, version) for version in (1, 2, 3)}


def _champion(versions: dict[int, LoadedModel], version: int = 1) -> Champion:
    return Champion(versions[version].manifest, versions[version])


def _examined(
    candidate: LoadedModel,
    champion: Champion | None,
    root: Path,
    rows: Iterable[LoggedPrediction] = (),
    **limits: Any,
) -> tuple[Evidence, dict[str, Check]]:
    """The evidence, with these rows as the log; and its checks by name."""
    record = list(rows)

    def newest(version: int, most: int) -> list[LoggedPrediction]:
        return [one for one in record if one.version == version][:most]

    log = Log(newest, wholeness(DirectorySource(root), "toy"))
    evidence = examine(candidate, champion, log, Limits(**limits))
    return evidence, {check.check: check for check in evidence.checks}


def _rows(model: LoadedModel, values: Iterable[float], truths: Sequence[Any] = ()) -> list[LoggedPrediction]:
    given = list(truths)
    return [
        logged(row, truth=given[place] if place < len(given) else None)
        for place, row in enumerate(answered(model, values))
    ]


def test_a_candidate_that_answers_alike_passes(root: Path, versions: dict[int, LoadedModel]) -> None:
    """Every check has a figure; without feedback it is not known which is right more often."""
    rows = _rows(versions[1], np.linspace(0, 20, 100))
    evidence, checks = _examined(versions[2], _champion(versions), root, rows)
    assert (evidence.model, evidence.candidate, evidence.champion, evidence.passed) == ("toy", 2, 1, True)
    said = {name: check.passed for name, check in checks.items()}
    assert said == {"schema": True, "golden": True, "replay": True, "latency": True, "accuracy": None}
    assert checks["replay"].figures["equal"] >= 98
    assert Evidence.model_validate_json(evidence.model_dump_json()) == evidence


def test_labels_that_differ_too_often_fail(root: Path, versions: dict[int, LoadedModel]) -> None:
    """A quarter of x from 0 to 20 lies between the thresholds; a limit may allow that."""
    rows = _rows(versions[1], np.linspace(0.1, 19.9, 200))
    evidence, checks = _examined(versions[3], _champion(versions), root, rows)
    assert (evidence.passed, checks["replay"].passed) == (False, False)
    assert checks["replay"].figures["flips"][0] == {"was": "small", "is": "big", "rows": pytest.approx(49, abs=3)}
    assert _examined(versions[3], _champion(versions), root, rows, least_equal=0.7)[0].passed


def test_a_row_that_is_refused_fails(root: Path, versions: dict[int, LoadedModel]) -> None:
    """Even one, unless a limit allows it."""
    rows = [*_rows(versions[1], range(40)), logged(row(99, inputs={"x": 1.0, "y": 2.0}, output="small"))]
    evidence, checks = _examined(versions[2], _champion(versions), root, rows)
    assert (evidence.passed, checks["replay"].figures["refused"]) == (False, 1)
    assert _examined(versions[2], _champion(versions), root, rows, most_broken=1)[1]["replay"].passed


def test_few_rows_are_not_enough_to_say(root: Path, versions: dict[int, LoadedModel]) -> None:
    """However much they differ; and those with hashes are no rows to compare, but are counted."""
    hashed = [logged(row(100 + n, inputs={"x": "hmac-sha256:" + "0" * 64})) for n in range(50)]
    rows = [*_rows(versions[1], [6.0] * 29), *hashed]
    evidence, checks = _examined(versions[3], _champion(versions), root, rows)
    assert (evidence.passed, checks["replay"].passed) == (True, None)
    assert "29 comparable" in checks["replay"].detail
    assert "of 50 the log has not all inputs" in checks["replay"].detail
    assert checks["replay"].figures["unasked"] == 50


def test_the_replay_ends_when_its_time_is_over(root: Path, versions: dict[int, LoadedModel]) -> None:
    """What was asked by then counts."""
    rows = _rows(versions[1], [1.0] * 1_000)
    checks = _examined(versions[2], _champion(versions), root, rows, seconds=1e-9)[1]
    assert 1 <= checks["replay"].figures["rows"] < 1_000


def test_a_regression_may_move_by_half_a_standard_deviation(tmp_path: Path) -> None:
    """At the 95th percentile."""
    for version, factor in ((1, 10.0), (2, 10.5), (3, 20.0)):
        write_line(tmp_path, version, factor)
    models = {version: load(tmp_path, version) for version in (1, 2, 3)}
    rows = _rows(models[1], np.linspace(0, 20, 50))
    near = _examined(models[2], _champion(models), tmp_path, rows)[1]["replay"]
    far = _examined(models[3], _champion(models), tmp_path, rows)[1]["replay"]
    assert (near.passed, far.passed) == (True, False)
    assert near.figures["shift"]["p95"] == pytest.approx(0.5 * 19 / (200 / 12**0.5), rel=0.05)


def test_a_constant_champion_is_no_measure(tmp_path: Path) -> None:
    """There is no standard deviation; the same constant is the same all the same."""
    for version, factor in ((1, 0.0), (2, 1.0), (3, 0.0)):
        write_line(tmp_path, version, factor)
    models = {version: load(tmp_path, version) for version in (1, 2, 3)}
    rows = _rows(models[1], range(1, 50))
    assert _examined(models[2], _champion(models), tmp_path, rows)[1]["replay"].passed is None
    assert _examined(models[3], _champion(models), tmp_path, rows)[1]["replay"].passed is True


def _truths(values: Iterable[float], threshold: float) -> list[str]:
    return ["big" if value >= threshold else "small" for value in values]


def test_a_candidate_that_is_wrong_more_often_fails(root: Path, versions: dict[int, LoadedModel]) -> None:
    """Where the champion is always right, and 3 wrong in a quarter of 200."""
    values = np.linspace(0.1, 19.9, 200).tolist()
    rows = _rows(versions[1], values, _truths(values, 9.5))
    check = _examined(versions[3], _champion(versions), root, rows)[1]["accuracy"]
    assert check.passed is False
    assert (check.figures["replayed"]["better"], check.figures["replayed"]["p_value"]) == (
        0,
        pytest.approx(0, abs=1e-9),
    )
    worst = _examined(versions[1], _champion(versions, 3), root, _rows(versions[3], values, _truths(values, 9.5)))[1]
    assert worst["accuracy"].passed is True  # it is better by as much


def test_a_difference_by_chance_does_not_fail(root: Path, versions: dict[int, LoadedModel]) -> None:
    """4 rows worse of 100 can be luck (p = 0.125); 6 cannot (p = 0.031)."""
    for worse, passed in ((4, True), (6, False)):
        values = [7.0] * worse + [1.0] * (100 - worse)
        rows = _rows(versions[1], values, ["small"] * 100)
        assert _examined(versions[3], _champion(versions), root, rows)[1]["accuracy"].passed is passed


def test_little_feedback_says_nothing(root: Path, versions: dict[int, LoadedModel]) -> None:
    """Under 100 rows, unless a limit is content with fewer."""
    values = [7.0] * 99
    rows = _rows(versions[1], values, ["small"] * 99)
    assert _examined(versions[3], _champion(versions), root, rows)[1]["accuracy"].passed is None
    assert _examined(versions[3], _champion(versions), root, rows, least_pairs=99)[1]["accuracy"].passed is False


def test_what_the_candidate_answered_itself_stands_beside_it(root: Path, versions: dict[int, LoadedModel]) -> None:
    """As a challenger it was right 3 times of 4."""
    own = _rows(versions[2], [1.0, 2.0, 15.0, 16.0, 17.0], ["small", "small", "big", "small"])
    check = _examined(versions[2], _champion(versions), root, own)[1]["accuracy"]
    found = check.figures["candidate_in_service"]
    assert (found["rows"], found["share"]) == (4, 0.75)
    assert found["low"] < 0.75 < found["high"]


def test_golden_rows_of_both_are_tried(root: Path, tmp_path: Path, versions: dict[int, LoadedModel]) -> None:
    """A candidate that does not take an input of the champion's golden rows fails."""
    assert check_golden(versions[2], _champion(versions)).figures == {"own": 1, "champions": 1, "champions_refused": 0}
    strange = _with_golden_input(versions[1].manifest, {"x": 1.0, "y": 1.0})
    check = check_golden(versions[2], Champion(strange, None))
    assert check.passed is False
    assert "row 0" in check.detail


def _with_golden_input(manifest: Manifest, inputs: dict[str, Any]) -> Manifest:
    (golden,) = manifest.golden.rows
    changed = manifest.golden.model_copy(update={"rows": (golden.model_copy(update={"inputs": inputs}),)})
    return manifest.model_copy(update={"golden": changed})


def test_a_candidate_that_takes_too_long_fails(tmp_path: Path) -> None:
    """A fiftieth of a second, and the champion next to nothing; its answers are the same."""
    write_line(tmp_path, 1, 1.0)
    slow, golden = Slow().fit(None, None), one_golden(0.02, x=0.02)
    write_version(tmp_path, slow, version=2, task="regression", outputs=NUMBER, golden=golden)
    champion, candidate = load(tmp_path, 1), load(tmp_path, 2)
    small = [{"x": 0.02}]
    check = check_latency(candidate, Champion(champion.manifest, champion), small, Limits(), Pace())
    assert check.passed is False
    assert check.figures["rows_1"]["candidate_ms"] == pytest.approx(20, rel=0.5)
    lenient = Limits(most_latency_ratio=1e6)
    assert check_latency(candidate, Champion(champion.manifest, champion), small, lenient, Pace()).passed is True


def test_a_candidate_that_is_fast_enough_passes_whatever_the_ratio(versions: dict[int, LoadedModel]) -> None:
    """Under a millisecond a row."""
    limits = Limits(most_latency_ratio=1e-6)
    check = check_latency(versions[2], _champion(versions), [{"x": 1.0}, {"x": 2.0}], limits, Pace())
    assert check.passed is True
    assert check.figures["rows_64"]["ratio"] > 1e-6


def test_a_champion_that_cannot_be_loaded_holds_nobody_up(root: Path, versions: dict[int, LoadedModel]) -> None:
    """Its log and its manifest still speak; how fast it was is not known."""
    rows = _rows(versions[1], range(40))
    evidence, checks = _examined(versions[2], Champion(versions[1].manifest, None), root, rows)
    assert (evidence.passed, checks["latency"].passed, checks["replay"].passed) == (True, None, True)


def test_without_a_champion_there_is_little_to_ask(root: Path, versions: dict[int, LoadedModel]) -> None:
    """Its own golden rows."""
    evidence, checks = _examined(versions[2], None, root)
    assert (evidence.passed, evidence.champion, checks["golden"].passed, checks["schema"].passed) == (
        True,
        None,
        True,
        None,
    )
