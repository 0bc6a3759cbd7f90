"""One row has one answer: alone, in a batch, beside others, from the cache, and by whatever form executes the model."""

import asyncio
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from app.config import CacheSettings, ModelSettings, Settings, StorageSettings
from app.manifest import InputField, Manifest
from app.storage.migrations import upgrade
from app.training.options import Options
from app.training.publish import publish
from tests.support.asgi import OPEN, UNLIMITED, Answer, InProcess, in_process

ARITHMETIC = 1e-9  # sums of the same numbers in another order
TIE = 1e-12
MODELS = ("sentiment", "iris", "breast-cancer", "diabetes", "flats")
KINDS = ("loft", "studio", "ground floor")
COLUMNS = (
    InputField(name="area", dtype="float", missing="allow"),
    InputField(name="rooms", dtype="integer"),
    InputField(name="kind", dtype="category", categories=KINDS),
)

# What one answer says of one row: the value and the probabilities, or the code of an error.
Said = tuple[Any, dict[str, float] | None]
Row = dict[str, Any]
Choice = Literal["auto", "off"]


@pytest.fixture(scope="module")
def models(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo models, and one of a table with gaps and categories."""
    root = tmp_path_factory.mktemp("agreement") / "models"
    shutil.copytree(demo_models, root)
    drawn = np.random.default_rng(5)
    table = np.empty((90, 3), dtype=object)
    table[:, 0] = [None if i % 7 == 0 else float(area) for i, area in enumerate(drawn.normal(60, 20, 90))]
    table[:, 1] = [int(rooms) for rooms in drawn.integers(1, 6, 90)]
    table[:, 2] = [str(kind) for kind in drawn.choice(KINDS, 90)]
    dear = np.array(["dear" if row[1] > 3 or row[2] == "loft" else "cheap" for row in table])
    numbers = make_pipeline(SimpleImputer(missing_values=np.nan), StandardScaler())
    columns = ColumnTransformer([("numbers", numbers, [0, 1]), ("kind", OneHotEncoder(), [2])])
    table[:, 0] = [np.nan if area is None else area for area in table[:, 0]]
    estimator = make_pipeline(columns, LogisticRegression()).fit(table, dear)
    options = Options(models_dir=root, fields=COLUMNS, field_names=("area", "rooms", "kind"))
    publish("flats", estimator, table, dear, task="classification", options=options)
    return root


@pytest.fixture(scope="module")
def compiled(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """Models in the forms that were proven, and no cache."""
    with in_process(_settings(models, tmp_path_factory.mktemp("compiled"), "auto", "off")) as started:
        yield started


@pytest.fixture(scope="module")
def plain(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """scikit-learn alone."""
    with in_process(_settings(models, tmp_path_factory.mktemp("plain"), "off", "off")) as started:
        yield started


@pytest.fixture(scope="module")
def cached(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """scikit-learn, which is slow enough for every model to be cached."""
    with in_process(_settings(models, tmp_path_factory.mktemp("cached"), "off", "memory")) as started:
        yield started


def _settings(models: Path, folder: Path, compile_: Choice, cache: Literal["off", "memory"]) -> Settings:
    storage = StorageSettings(
        database_url=SecretStr(f"sqlite:///{folder}/presage.db"), journal_dir=folder / "journal", log_policy="off"
    )
    upgrade(storage)
    return Settings(
        auth=OPEN,
        limits=UNLIMITED,
        models=ModelSettings(models_dir=models, compile=compile_),
        storage=storage,
        cache=CacheSettings(cache=cache),
    )


def _texts() -> st.SearchStrategy[str]:
    """Of words that the model knows and others, repeated, in any script, and very long ones."""
    known = st.sampled_from(
        ("love", "this", "product", "broke", "at", "once", "not", "good", "terrible", "great", "money")
    )
    odd = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    words = st.lists(known | odd, min_size=1, max_size=30).map(" ".join)
    repeated = st.builds(lambda word, times: f"{word} " * times, known, st.integers(2, 1500))
    return st.one_of(words, odd, repeated)


def _value(field: InputField) -> st.SearchStrategy[Any]:
    """Near what training saw and far from it, and a gap where there may be one."""
    if field.dtype == "text":
        return _texts()
    if field.dtype == "category":
        return st.sampled_from(field.categories or ())
    if field.dtype == "integer":
        return st.integers(-1_000, 1_000)
    least, most = field.minimum or 0.0, field.maximum or 100.0
    near = st.floats(least, most) if least < most else st.just(least)
    found = near | st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, least, most])
    return found | st.none() if field.missing == "allow" else found


def _rows(models: Path, name: str) -> st.SearchStrategy[Row]:
    manifest = Manifest.model_validate_json((models / name / "1" / "manifest.json").read_bytes())
    return st.fixed_dictionaries({field.name: _value(field) for field in manifest.fields})


def _of_row(answer: Answer) -> Said:
    """What a request for one row was told."""
    document = answer.json()
    if answer.status == 200:
        return document["prediction"], document.get("probabilities")
    return document["errors"][0]["code"], None


def _of_batch(answer: Answer) -> list[Said]:
    assert answer.status == 200, answer.body
    return [
        (found["error"]["code"], None) if "error" in found else (found["prediction"], found.get("probabilities"))
        for found in answer.json()["results"]
    ]


def _alone(app: InProcess, name: str, rows: Sequence[Row]) -> list[Said]:
    return [_of_row(app.request("POST", f"/v2/predict/{name}", json_body={"inputs": row})) for row in rows]


def _together(app: InProcess, name: str, rows: Sequence[Row]) -> list[Said]:
    return _of_batch(app.request("POST", f"/v2/batch/{name}", json_body={"inputs": list(rows)}))


def _at_once(app: InProcess, name: str, rows: Sequence[Row]) -> list[Said]:
    """Each by a caller of its own, and a batch of all of them between the callers."""

    async def ask() -> list[Answer]:
        single = [app.ask("POST", f"/v2/predict/{name}", {"inputs": row}) for row in rows]
        batch = app.ask("POST", f"/v2/batch/{name}", {"inputs": list(rows)})
        half = len(single) // 2
        found: list[Answer] = await asyncio.gather(*single[:half], batch, *single[half:])
        return found

    answers = app.run(ask())
    batch = answers.pop(len(rows) // 2)
    found = [_of_row(answer) for answer in answers]
    _assert_agree(found, _of_batch(batch), ARITHMETIC)
    return found


def _assert_agree(ours: Sequence[Said], theirs: Sequence[Said], tolerance: float) -> None:
    """Labels are equal, but where the model cannot tell two apart; and numbers within the tolerance."""
    assert len(ours) == len(theirs)
    for (label, shares), (expected, wanted) in zip(ours, theirs, strict=True):
        if shares is None or wanted is None:
            assert shares is wanted
            assert label == (
                pytest.approx(expected, rel=tolerance, abs=tolerance) if _is_number(expected) else expected
            )
            continue
        assert list(shares) == list(wanted)
        assert shares == pytest.approx(wanted, rel=tolerance, abs=tolerance)
        assert label == expected or abs(wanted[label] - wanted[expected]) < TIE


def _is_number(value: Any) -> bool:
    return isinstance(value, float)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_has_one_answer_however_it_is_asked(models: Path, compiled: InProcess, name: str) -> None:
    """Alone, in a batch, and at the same time as others."""

    @settings(max_examples=15, deadline=None)
    @given(rows=st.lists(_rows(models, name), min_size=1, max_size=12))
    def check(rows: list[Row]) -> None:
        alone = _alone(compiled, name, rows)
        _assert_agree(_together(compiled, name, rows), alone, ARITHMETIC)
        _assert_agree(_at_once(compiled, name, rows), alone, ARITHMETIC)

    check()


@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_model_answers_as_scikit_learn_does(
    models: Path, compiled: InProcess, plain: InProcess, name: str
) -> None:
    """Every label, and every number within what the manifest allows."""

    @settings(max_examples=15, deadline=None)
    @given(rows=st.lists(_rows(models, name), min_size=1, max_size=12))
    def check(rows: list[Row]) -> None:
        expected = _alone(plain, name, rows)
        _assert_agree(_alone(compiled, name, rows), expected, _tolerance(models, name))
        _assert_agree(_together(compiled, name, rows), expected, _tolerance(models, name))

    check()


@pytest.mark.parametrize("name", MODELS)
def test_a_cached_answer_is_the_answer(models: Path, cached: InProcess, plain: InProcess, name: str) -> None:
    """In whichever way it was asked for first, and in whichever it is found."""

    @settings(max_examples=15, deadline=None)
    @given(rows=st.lists(_rows(models, name), min_size=1, max_size=8))
    def check(rows: list[Row]) -> None:
        expected = _alone(plain, name, rows)
        first = _at_once(cached, name, rows)
        _assert_agree(first, expected, ARITHMETIC)
        assert _alone(cached, name, rows) == first  # found, and so equal to the last bit
        _assert_agree(_together(cached, name, [*rows, *reversed(rows)]), [*expected, *reversed(expected)], ARITHMETIC)

    before = _hits(cached, name)
    check()
    assert _hits(cached, name) > before


def test_a_batch_on_another_form_agrees_with_its_rows(models: Path, compiled: InProcess) -> None:
    """A forest is executed by one form up to some hundreds of rows, and by another beyond."""
    manifest = Manifest.model_validate_json((models / "breast-cancer/1/manifest.json").read_bytes())
    example: dict[str, Any] = {**manifest.golden.rows[0].inputs}
    rows = [{name: value * (0.5 + number / 1000) for name, value in example.items()} for number in range(1_200)]
    together = _together(compiled, "breast-cancer", rows)
    _assert_agree(together[::40], _alone(compiled, "breast-cancer", rows[::40]), _tolerance(models, "breast-cancer"))
    assert len({label for label, _ in together}) == 2


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(_texts(), min_size=1, max_size=8))
def test_both_versions_of_the_contract_agree(compiled: InProcess, texts: list[str]) -> None:
    """Single or in a batch; and what one refuses the other refuses."""
    rows = [{"text": text} for text in texts]
    by_alias = compiled.request("POST", "/v2/batch/sentiment", json_body={"inputs": rows}, query="version=v1")
    said = [value for value, _ in _of_batch(by_alias)]
    for text, expected in zip(texts, said, strict=True):
        answer = compiled.request("POST", "/predict", json_body={"text": text})
        document = answer.json()
        found = document["sentiment"] if answer.status == 200 else document["errors"][0]["code"]
        assert found == expected
    labels = {"positive", "negative"}
    batch = compiled.request("POST", "/v1/batch", json_body={"texts": texts})
    if set(said) <= labels:
        assert batch.json()["results"] == said
    else:
        assert batch.json()["bad_rows"] == [place for place, value in enumerate(said) if value not in labels]


def test_what_is_not_composed_and_what_is_are_one_text(compiled: InProcess, plain: InProcess) -> None:
    """An accent typed as a character of its own changes no answer, by either form."""
    composed, apart = "un café déçu, naïve", "un cafe\u0301 de\u0301c\u0327u, nai\u0308ve"
    for app in (compiled, plain):
        one, other = _alone(app, "sentiment", [{"text": composed}, {"text": apart}])
        assert one == other


def test_each_model_is_executed_as_the_test_says(compiled: InProcess, plain: InProcess) -> None:
    """So that none of the above compares a form with itself."""
    ours, theirs = _runtimes(compiled), _runtimes(plain)
    assert all(theirs[name] == {"scikit-learn"} for name in MODELS)
    assert all(ours[name] != {"scikit-learn"} for name in MODELS)


def _runtimes(app: InProcess) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    exposition = app.request("GET", "/metrics").body.decode()
    for model, runtime in re.findall(r'presage_model_runtime\{model="(.*?)",runtime="(.*?)",.*?\} 1', exposition):
        found.setdefault(model, set()).add(runtime)
    return found


def _hits(app: InProcess, name: str) -> float:
    (family,) = app.app.services.metrics.cache_rows.collect()
    wanted = {"model": name, "outcome": "hit_memory"}
    return sum(sample.value for sample in family.samples if wanted.items() <= sample.labels.items())


def _tolerance(models: Path, name: str) -> float:
    manifest = Manifest.model_validate_json((models / name / "1" / "manifest.json").read_bytes())
    return manifest.golden.tolerance
