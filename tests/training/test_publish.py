"""`publish`: from a fitted estimator to a version that a server will serve, or to nothing at all."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from app.errors import PublishRefused, SigningRefused
from app.manifest import InputField, Manifest
from app.registry.loader import LoadedModel, load_version
from app.registry.model_keys import make_key_pair
from app.registry.signing import sign_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.training.options import Options
from app.training.publish import publish
from tests.support.estimators import Shouting
from tests.support.signing import make_key

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = np.arange(20.0).reshape(-1, 1)
SIZES = np.where(NUMBERS[:, 0] < 10, "small", "big")
TEXTS = ["good stuff", "bad stuff", "really good", "really bad", "good " * 40, "a bad one"] * 3
MOODS = ["up", "down"] * 9


_DEADLY = """
import sys
from pathlib import Path
import numpy as np
from own_code import Always
from app.training.options import Options
from app.training.publish import publish
X, y = np.zeros((4, 1)), ["a", "b", "a", "b"]
options = Options(models_dir=Path(sys.argv[1]), modules=("own_code",), field_names=("x",))
publish("toy", Always("kills its loader").fit(X, y), X, y, task="classification", options=options)
"""


def _options(root: Path, **more: Any) -> Options:
    return Options(models_dir=root / "models", modules=more.pop("modules", ()), **more)


def _publish_toy(root: Path, estimator: Any = None, **more: Any) -> Manifest:
    """`toy`, which tells small from big."""
    version = more.pop("version", None)
    options = _options(root, field_names=("x",), **more)
    estimator = estimator or LogisticRegression().fit(NUMBERS, SIZES)
    return publish("toy", estimator, NUMBERS, SIZES, task="classification", version=version, options=options)


def _publish_people(root: Path, estimator: Any, people: Any, stays: Any, **more: Any) -> Manifest:
    return publish("stay", estimator, people, stays, task="classification", options=_options(root, **more))


def _loaded(root: Path, manifest: Manifest, modules: tuple[str, ...] = ()) -> LoadedModel:
    return load_version(DirectorySource(root / "models"), manifest.name, manifest.version, Trust(modules))


def _answers(model: LoadedModel, rows: list[dict[str, Any]]) -> list[Any]:
    valid: Any = model.pipeline.validate(rows)
    return [
        p.value for p in model.pipeline.postprocess(model.runtime.predict(model.pipeline.preprocess(valid), len(rows)))
    ]


def _files(root: Path) -> set[str]:
    return {str(path.relative_to(root / "models")) for path in (root / "models").rglob("*")}


def _by_columns() -> Any:
    """A pipeline that names its columns, one of them a single name, one a slice."""
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = [("numbers", numbers, slice("age", "income")), ("city", OneHotEncoder(), ["city"])]
    return make_pipeline(ColumnTransformer(columns, remainder="passthrough"), LogisticRegression(max_iter=1_000))


def test_what_is_published_is_what_a_server_loads(tmp_path: Path) -> None:
    """The folder holds the two files, its manifest is the one returned, and the first version is the champion."""
    manifest = _publish_toy(tmp_path)
    source = DirectorySource(tmp_path / "models")
    assert _files(tmp_path) == {"toy", "toy/1", "toy/1/manifest.json", "toy/1/model.joblib", "toy/aliases.json"}
    assert source.manifest("toy", 1) == manifest
    assert source.aliases("toy") == {"champion": 1}
    assert _answers(_loaded(tmp_path, manifest), [{"x": 2.0}, {"x": 17.0}]) == ["small", "big"]


def test_a_matrix_becomes_fields_with_ranges() -> None:
    """Names come from the caller, dtype and range from the data, and floats stay floats though they are whole."""
    field = InputField(name="x", dtype="float", minimum=0.0, maximum=19.0, example=10.0)
    assert _table_fields(NUMBERS) == (field,)
    whole = field.model_copy(update={"dtype": "integer", "example": 10})
    assert _table_fields(NUMBERS.astype(int)) == (whole,)


def _table_fields(X: Any) -> tuple[InputField, ...]:
    from app.training.tables import as_table  # noqa: PLC0415 -- only these assertions look below publish

    return as_table(X, field_names=("x",)).fields


def test_texts_become_one_text_field(tmp_path: Path) -> None:
    """A list of strings is a text-classification model whose golden rows have the shortest and the longest text."""
    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS, MOODS)
    manifest = publish("mood", estimator, TEXTS, MOODS, task="text-classification", options=_options(tmp_path))
    assert [field.dtype for field in manifest.fields] == ["text"]
    assert manifest.artefact.container == "texts"
    golden = {row.inputs["text"] for row in manifest.golden.rows}
    assert {"bad stuff", "good " * 40} <= golden
    assert {row.prediction for row in manifest.golden.rows} == {"up", "down"}
    series = pd.Series(TEXTS, index=range(100, 118), name="review")
    assert (
        publish("mood", estimator, series, MOODS, task="text-classification", options=_options(tmp_path)).version == 2
    )


def test_a_dataframe_by_column_names_is_served_from_arrays(tmp_path: Path, people: Any, stays: Any) -> None:
    """No pandas is needed to serve it, no warning is written, and missing values are inputs where training had them."""
    estimator = _by_columns().fit(people, stays)
    manifest = _publish_people(tmp_path, estimator, people, stays)
    assert manifest.artefact.container == "objects"
    assert {field.name: (field.dtype, field.missing) for field in manifest.fields} == {
        "age": ("integer", "refuse"),
        "income": ("float", "allow"),
        "city": ("category", "refuse"),
        "member": ("boolean", "refuse"),
    }
    rows = [{"age": 20, "city": "Oslo", "member": True}, {"age": 79, "income": 1e4, "city": "Rome", "member": False}]
    expected = estimator.predict(pd.DataFrame(rows, columns=list(people.columns)))
    assert _answers(_loaded(tmp_path, manifest), rows) == expected.tolist()


def test_a_text_among_other_columns_is_served_from_arrays(tmp_path: Path) -> None:
    """A single column name hands its transformer one column of texts, by position as by name."""
    X = pd.DataFrame(
        {"stars": [1.0, 5.0] * 20, "review": [f"{w} thing {i}" for i in range(20) for w in ("bad", "good")]}
    )
    y = np.array(["down", "up"] * 20)
    columns = [("words", TfidfVectorizer(), "review"), ("stars", "passthrough", ["stars"])]
    estimator = make_pipeline(ColumnTransformer(columns), LogisticRegression()).fit(X, y)
    manifest = _publish_people(tmp_path, estimator, X, y)
    assert [field.dtype for field in manifest.fields] == ["float", "text"]
    assert manifest.artefact.container == "objects"
    rows = [{"stars": 5.0, "review": "good"}, {"stars": 1.0, "review": "bad"}]
    assert _answers(_loaded(tmp_path, manifest), rows) == ["up", "down"]


def test_categories_by_dtype_are_the_estimators_own(tmp_path: Path, people: Any, stays: Any) -> None:
    """Gradient boosting that takes its categories from a DataFrame's dtypes answers the same when it is served."""
    X = people[["age", "city"]].astype({"city": "category"})
    estimator = HistGradientBoostingClassifier(max_iter=20).fit(X, stays)
    manifest = _publish_people(tmp_path, estimator, X, stays)
    rows = X.head(20).astype(object).to_dict("records")
    assert _answers(_loaded(tmp_path, manifest), rows) == estimator.predict(X.head(20)).tolist()


def test_the_artefact_is_the_estimator_as_it_was_fitted(tmp_path: Path, people: Any, stays: Any) -> None:
    """Names are replaced by positions in the server's memory, and not in the file."""
    _publish_people(tmp_path, _by_columns().fit(people, stays), people, stays)
    kept = joblib.load(tmp_path / "models" / "stay" / "1" / "model.joblib")
    assert kept.feature_names_in_.tolist() == ["age", "income", "city", "member"]


def test_a_golden_row_has_a_missing_value(tmp_path: Path, people: Any, stays: Any) -> None:
    """Where a field may miss, a row in which it does is proven before each start."""
    manifest = _publish_people(tmp_path, _by_columns().fit(people, stays), people, stays)
    assert any(row.inputs["income"] is None for row in manifest.golden.rows)
    assert {row.prediction for row in manifest.golden.rows} == {"stays", "leaves"}


def test_rows_as_dicts_are_taken_too(tmp_path: Path, people: Any, stays: Any) -> None:
    """A list of dicts says the same as the DataFrame that it came from."""
    estimator = _by_columns().fit(people, stays)
    frame = _publish_people(tmp_path, estimator, people, stays)
    dicts = _publish_people(tmp_path, estimator, people.to_dict("records"), stays)
    assert dicts.fields == frame.fields
    assert (dicts.version, dicts.golden) == (2, frame.golden)


def test_an_estimator_that_needs_a_dataframe_gets_one(
    tmp_path: Path, people: Any, stays: Any, own_package: Path
) -> None:
    """The container is `frame` when nothing cheaper works, and columns have their types for a single row, too."""
    own = import_module("own_code")
    estimator = make_pipeline(own.NeedsNames(), LogisticRegression()).fit(people, stays)
    manifest = _publish_people(tmp_path, estimator, people, stays, modules=("own_code",))
    assert manifest.artefact.container == "frame"
    model = _loaded(tmp_path, manifest, ("own_code",))
    frame = model.pipeline.preprocess([{"age": 20, "city": "Oslo", "member": True}])
    assert frame.dtypes.astype(str).to_dict() == {
        "age": "int64",
        "income": "float64",
        "city": "category",
        "member": "bool",
    }


def test_own_code_is_refused_with_advice(tmp_path: Path, own_package: Path) -> None:
    """A custom transformer in an importable package needs MODEL_MODULES, and the refusal says so; then it serves."""
    own = import_module("own_code")
    estimator = make_pipeline(own.Doubler(), LogisticRegression()).fit(NUMBERS, SIZES)
    with pytest.raises(PublishRefused, match=r"own_code\.Doubler.*MODEL_MODULES=own_code"):
        _publish_toy(tmp_path, estimator)
    assert _files(tmp_path) == set()
    manifest = _publish_toy(tmp_path, estimator, modules=("own_code",))
    assert _answers(_loaded(tmp_path, manifest, ("own_code",)), [{"x": 2.0}]) == ["small"]


def test_the_settings_are_the_default(tmp_path: Path, own_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MODELS_DIR and MODEL_MODULES count for a script that calls publish without options."""
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("MODEL_MODULES", "own_code")
    estimator = make_pipeline(import_module("own_code").Doubler(), LogisticRegression())
    frame = pd.DataFrame({"x": NUMBERS[:, 0]})
    publish("toy", estimator.fit(frame, SIZES), frame, SIZES, task="classification")
    assert (tmp_path / "elsewhere" / "toy" / "1" / "manifest.json").exists()


def test_a_version_is_never_overwritten(tmp_path: Path) -> None:
    """A number that is taken is refused by name and nothing changes; without a number the next one is taken."""
    _publish_toy(tmp_path, version=3)
    before = (tmp_path / "models" / "toy" / "3" / "manifest.json").read_bytes()
    with pytest.raises(PublishRefused, match="toy 3 exists already"):
        _publish_toy(tmp_path, version=3)
    assert (tmp_path / "models" / "toy" / "3" / "manifest.json").read_bytes() == before
    assert _publish_toy(tmp_path).version == 4


def test_aliases_move_only_when_asked(tmp_path: Path) -> None:
    """The first version is the champion; a later one takes the aliases that it is given, and the others stay."""
    source = DirectorySource(tmp_path / "models")
    _publish_toy(tmp_path, aliases=("v1",))
    _publish_toy(tmp_path)
    assert source.aliases("toy") == {"champion": 1, "v1": 1}
    _publish_toy(tmp_path, aliases=("champion", "canary"))
    assert source.aliases("toy") == {"champion": 3, "v1": 1, "canary": 3, "previous": 1}


def test_the_implied_champion_stays(tmp_path: Path) -> None:
    """Without aliases.json the newest version is the champion, and stays it when a new version gets another alias."""
    _publish_toy(tmp_path)
    (tmp_path / "models" / "toy" / "aliases.json").unlink()
    _publish_toy(tmp_path, aliases=("canary",))
    assert DirectorySource(tmp_path / "models").aliases("toy") == {"champion": 1, "canary": 2}


@pytest.mark.parametrize(
    ("fate", "said"),
    [("does not pickle", "cannot be pickled"), ("answers otherwise", "the answers differ from the estimator's own")],
)
def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path, own_package: Path, fate: str, said: str) -> None:
    """An estimator that does not survive being written and read is refused, and no trace of it is left."""
    own = import_module("own_code")
    with pytest.raises(PublishRefused, match=said):
        _publish_toy(tmp_path, own.Always(fate).fit(NUMBERS, SIZES), modules=("own_code",))
    assert _files(tmp_path) == set()


def test_a_process_that_dies_midway_leaves_nothing_visible(tmp_path: Path, own_package: Path) -> None:
    """After a crash between writing and verifying there is no model, and the same number can be published."""
    script = tmp_path / "script.py"
    script.write_text(_DEADLY)
    command = [sys.executable, str(script), str(tmp_path / "models")]
    environment = {**os.environ, "PYTHONPATH": f"{own_package}{os.pathsep}{ROOT}"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 7, ended.stderr
    assert any(path.name == "model.joblib" for path in (tmp_path / "models").rglob("*"))
    assert DirectorySource(tmp_path / "models").names() == []
    assert _publish_toy(tmp_path).version == 1


def test_labels_may_be_renamed(tmp_path: Path) -> None:
    """The estimator's 0 and 1 are what the caller says; without names they are whole numbers."""
    estimator = LogisticRegression().fit(NUMBERS, NUMBERS[:, 0] >= 10)
    options = _options(tmp_path, field_names=("x",), labels=("small", "big"))
    named = publish("toy", estimator, NUMBERS, NUMBERS[:, 0] >= 10, task="classification", options=options)
    assert _answers(_loaded(tmp_path, named), [{"x": 1.0}]) == ["small"]
    plain = _publish_toy(tmp_path, LogisticRegression().fit(NUMBERS, (NUMBERS[:, 0] >= 10).astype(float)))
    assert plain.outputs.labels == (0, 1)


def test_given_fields_say_more_than_the_data(tmp_path: Path) -> None:
    """A description and a category that X lacks are kept; the range is what X shows."""
    X = pd.DataFrame({"x": NUMBERS[:, 0], "kind": [1, 2] * 10})
    fields = (
        InputField(name="kind", dtype="category", categories=(1, 2, 3)),
        InputField(name="x", dtype="float", description="The size."),
    )
    estimator = LogisticRegression().fit(X, SIZES)
    manifest = _publish_people(tmp_path, estimator, X, SIZES, fields=fields)
    x, kind = manifest.fields
    assert (x.description, x.minimum, x.maximum) == ("The size.", 0.0, 19.0)
    assert (kind.categories, manifest.artefact.container) == ((1, 2, 3), "matrix")


def test_a_regression_has_a_range_and_no_labels(tmp_path: Path) -> None:
    """The target's name comes from a Series, its range from the values."""
    y = pd.Series(NUMBERS[:, 0] * 3, name="price")
    options = _options(tmp_path, field_names=("x",), unit="EUR")
    manifest = publish("price", LinearRegression().fit(NUMBERS, y), NUMBERS, y, task="regression", options=options)
    assert manifest.outputs.model_dump(exclude_defaults=True) == {
        "target": "price",
        "unit": "EUR",
        "minimum": 0.0,
        "maximum": 57.0,
    }
    assert manifest.profile.score is None


def test_the_manifest_says_where_it_comes_from(tmp_path: Path) -> None:
    """Two publications of the same data have the same digests, and other data another."""
    first, again = _publish_toy(tmp_path), _publish_toy(tmp_path)
    assert (first.training, first.artefact) == (again.training, again.artefact)
    other = _publish_toy(tmp_path, LogisticRegression(C=2.0).fit(NUMBERS, SIZES))
    assert other.artefact.sha256 != first.artefact.sha256
    assert first.origin.code.startswith("0.")


IRIS = load_iris()


@pytest.mark.parametrize(
    ("X", "y", "more", "said"),
    [
        (NUMBERS, SIZES, {}, "pass as many different field_names"),
        (NUMBERS[:5], SIZES, {"field_names": ("x",)}, "X has 5 rows, and y the shape"),
        ([], [], {}, "X has no rows"),
        (NUMBERS, SIZES, {"field_names": ("x",), "labels": ("one",)}, "1 labels are given"),
        (NUMBERS, SIZES, {"field_names": ("x",), "aliases": ("2",)}, "is not an alias"),
        (np.where(NUMBERS == 3, np.inf, NUMBERS), SIZES, {"field_names": ("x",)}, "cannot be of dtype float"),
        ([{"x": 1}, {"x": "one"}] * 10, SIZES, {}, "values of int, str"),
        (pd.DataFrame({"x": pd.date_range("2024-01-01", periods=20)}), SIZES, {}, "values of Timestamp"),
        (pd.DataFrame(np.zeros((20, 2)), columns=["x", "x"]), SIZES, {}, "two columns of X have the same name"),
        (IRIS.data[:20], SIZES, {"field_names": tuple("abcd")}, "the estimator cannot answer for X"),
        (["  "] * 20, SIZES, {}, "no row of X is a valid input"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(
    tmp_path: Path, X: Any, y: Any, more: dict[str, Any], said: str
) -> None:
    """Each mistake has a sentence of its own, and nothing is written."""
    estimator = LogisticRegression().fit(NUMBERS, SIZES)
    with pytest.raises(PublishRefused, match=said):
        publish("toy", estimator, X, y, task="classification", options=_options(tmp_path, **more))
    assert _files(tmp_path) == set()


def test_an_estimator_that_is_not_fitted_is_refused(tmp_path: Path) -> None:
    """So is a name that cannot be a folder and a URL."""
    with pytest.raises(PublishRefused, match="not fitted"):
        _publish_toy(tmp_path, LogisticRegression())
    with pytest.raises(PublishRefused, match="lower-case"):
        publish("../toy", LogisticRegression(), NUMBERS, SIZES, task="classification", options=_options(tmp_path))


def test_aliases_that_cannot_be_read_stop_everything(tmp_path: Path) -> None:
    """A broken aliases.json is mended by a person first, since publishing would replace it."""
    _publish_toy(tmp_path)
    (tmp_path / "models" / "toy" / "aliases.json").write_text("{")
    with pytest.raises(PublishRefused, match="must be mended first"):
        _publish_toy(tmp_path)
    assert not (tmp_path / "models" / "toy" / "2").exists()


def test_a_version_is_signed_as_it_is_published(tmp_path: Path) -> None:
    """With the key of the option; before it has its name, so that no server ever sees it unsigned."""
    key = make_key(tmp_path / "keys")
    _publish_toy(tmp_path, signing_key=tmp_path / "keys/alice.key")
    trust = Trust(keys_dir=tmp_path / "keys", signatures="require")
    assert load_version(DirectorySource(tmp_path / "models"), "toy", 1, trust).version == 1
    assert not sign_version(DirectorySource(tmp_path / "models"), "toy", 1, key)


def test_a_key_that_cannot_sign_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """One that is not there, or encrypted without its passphrase."""
    make_key_pair("alice", tmp_path, "correct horse")
    for name in ("alice.key", "bob.key"):
        with pytest.raises(SigningRefused):
            _publish_toy(tmp_path, signing_key=tmp_path / name)
    assert not (tmp_path / "models").exists()


def test_a_version_may_be_a_skops_file(tmp_path: Path) -> None:
    """Which the manifest names; there is no pickle beside it."""
    manifest = _publish_toy(tmp_path, format="skops")
    assert manifest.artefact.file == "model.skops"
    assert sorted(path.name for path in (tmp_path / "models/toy/1").iterdir()) == ["manifest.json", "model.skops"]
    assert _loaded(tmp_path, manifest).manifest == manifest


def test_a_type_that_a_server_would_not_trust_is_not_published(tmp_path: Path) -> None:
    """And is, once the option names it."""
    estimator = make_pipeline(Shouting(), TfidfVectorizer(), LogisticRegression()).fit(TEXTS, MOODS)
    types = ("tests.support.estimators.Shouting",)

    def publish_moods(*trusted: str) -> Manifest:
        options = _options(tmp_path, format="skops", types=trusted)
        return publish("moods", estimator, TEXTS, MOODS, task="text-classification", options=options)

    with pytest.raises(PublishRefused, match=f"{types[0]}; if you trust them, name them in SKOPS_TRUSTED_TYPES"):
        publish_moods()
    assert publish_moods(*types).artefact.file == "model.skops"
