"""Orders become versions, whatever their source is: an estimator in a file, a version, a model of MLflow's."""

import json
import pickle
import shutil
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
import yaml
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import LinearSVC

from app.config import ModelSettings
from app.errors import InvalidTrainingData, PublishRefused
from app.manifest import Manifest
from app.registry.errands import silent
from app.registry.loader import load_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.training.orders import Order, kind_of
from app.training.publication import carry_out
from tests.support.demo import MODULES
from tests.support.estimators import Fingerprint
from tests.support.versions import write_classifier

FLOWERS = load_iris(as_frame=True)
SPECIES = FLOWERS.target_names[FLOWERS.target]
CLASSIFIER = LogisticRegression(max_iter=1000).fit(FLOWERS.data, SPECIES)


def _publish(tmp_path: Path, source: Path, *, settings: Any = None, **wishes: Any) -> Manifest:
    """What the command does, in this process."""
    models = ModelSettings(models_dir=tmp_path / "models", **(settings or {}))
    kind = wishes.pop("kind", None) or kind_of(source)
    order = Order(source=source, kind=kind, models=models, cpu_seconds=60, by="ann", **{"name": "toy", **wishes})
    return carry_out(order, silent)


def _answers(tmp_path: Path, rows: list[dict[str, Any]], modules: tuple[str, ...] = ()) -> list[Any]:
    model = load_version(DirectorySource(tmp_path / "models"), "toy", 1, Trust(modules))
    valid: Any = model.pipeline.validate(rows)
    outputs = model.runtime.predict(model.pipeline.preprocess(valid), len(rows))
    return [prediction.value for prediction in model.pipeline.postprocess(outputs)]


def _dumped(tmp_path: Path, estimator: Any, rows: pd.DataFrame) -> dict[str, Path]:
    """The estimator in one file, and the rows in another."""
    joblib.dump(estimator, tmp_path / "toy.joblib")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    return {"source": tmp_path / "toy.joblib", "data": tmp_path / "rows.csv"}


def test_without_a_target_the_estimators_answers_are_taken(tmp_path: Path) -> None:
    """So nothing is said of how good it is; a plain pickle that was fitted on a matrix gets its names from the file."""
    X = np.column_stack([np.arange(40), np.arange(40) % 7])
    (tmp_path / "double.pkl").write_bytes(pickle.dumps(Ridge().fit(X, X[:, 0] * 2.0)))
    pd.DataFrame({"a": X[:, 0] + 0.5, "b": X[:, 1]}).to_csv(tmp_path / "rows.csv", index=False)
    manifest = _publish(tmp_path, tmp_path / "double.pkl", data=tmp_path / "rows.csv")
    assert [(field.name, field.dtype) for field in manifest.fields] == [("a", "float"), ("b", "integer")]
    assert manifest.training.evaluations == ()
    assert _answers(tmp_path, [{"a": 3.0, "b": 2}]) == [pytest.approx(6.0, abs=0.1)]


def test_a_regression_is_measured_on_its_target(tmp_path: Path) -> None:
    """In the target's own units."""
    X = pd.DataFrame({"a": np.arange(40.0)})
    files = _dumped(tmp_path, Ridge(alpha=0).fit(X, X["a"] * 2), X.assign(twice=X["a"] * 2))
    manifest = _publish(tmp_path, **files, target="twice")
    assert manifest.outputs.target == "twice"
    assert manifest.training.evaluations[0].metrics == {"mae": 0.0, "rmse": 0.0, "r2": 1.0}


def test_a_pipeline_of_words_is_a_text_classifier(tmp_path: Path) -> None:
    """It is asked what it takes; labels that are numbers are found in the file by their value."""
    texts = [f"{word} thing {i}" for i in range(20) for word in ("good", "bad")]
    labels = np.array([1, 0] * 20)
    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, labels)
    files = _dumped(tmp_path, estimator, pd.DataFrame({"id": range(40), "text": texts, "y": labels}))
    manifest = _publish(tmp_path, **files, target="y")
    assert (manifest.task, manifest.outputs.labels) == ("text-classification", (0, 1))
    assert manifest.artefact.container == "texts"
    assert _answers(tmp_path, [{"text": "a good one"}]) == [1]


def test_columns_of_words_and_numbers(tmp_path: Path) -> None:
    """A pipeline with encoders is served from a CSV file's columns, and one without probabilities gets its figures."""
    X = pd.DataFrame({"city": ["Bern", "Oslo"] * 20, "age": range(40)})
    columns = make_column_transformer((OneHotEncoder(), ["city"]), remainder="passthrough")
    y = np.where(X["city"] == "Oslo", "north", "south")
    files = _dumped(tmp_path, make_pipeline(columns, LinearSVC()).fit(X, y), X.assign(side=y, note="-"))
    manifest = _publish(tmp_path, **files, target="side")
    assert {field.name: field.dtype for field in manifest.fields} == {"city": "category", "age": "integer"}
    assert set(manifest.training.evaluations[0].metrics) == {"accuracy", "balanced_accuracy"}
    assert _answers(tmp_path, [{"city": "Oslo", "age": 3}]) == ["north"]


def test_a_skops_file(tmp_path: Path) -> None:
    """It is opened with the types that we trust, and not with those that it names; what is served is the same model."""
    X = pd.DataFrame({"a": np.arange(20.0) + 0.5})
    X.to_csv(tmp_path / "rows.csv", index=False)
    estimator = Fingerprint().fit(X.to_numpy(), None)
    skops.io.dump(estimator, tmp_path / "toy.skops")
    trusted = {"model_modules": (MODULES,), "skops_trusted_types": (f"{MODULES}.Fingerprint",)}
    arguments: Any = {"source": tmp_path / "toy.skops", "data": tmp_path / "rows.csv"}
    with pytest.raises(PublishRefused, match=r"Fingerprint.*SKOPS_TRUSTED_TYPES"):
        _publish(tmp_path, **arguments)
    _publish(tmp_path, **arguments, settings=trusted)
    expected = estimator.predict(np.array([[3.5]])).tolist()
    assert _answers(tmp_path, [{"a": 3.5}], (MODULES,)) == expected
    (tmp_path / "toy.skops").write_bytes(b"PK")
    with pytest.raises(PublishRefused, match=r"toy\.skops: BadZipFile"):
        _publish(tmp_path, **arguments, settings=trusted)


def test_what_cannot_be_published(tmp_path: Path) -> None:
    """One sentence says why, and where."""
    rows = FLOWERS.data.assign(species=SPECIES)
    files = _dumped(tmp_path, CLASSIFIER, rows)
    with pytest.raises(PublishRefused, match="say what goes in with --data"):
        _publish(tmp_path, files["source"])
    with pytest.raises(InvalidTrainingData, match="lacks the column colour"):
        _publish(tmp_path, **files, target="colour")
    with pytest.raises(InvalidTrainingData, match=r"rows.csv, line 2, column petal width \(cm\): is none of"):
        _publish(tmp_path, **files, target="petal width (cm)")
    with pytest.raises(PublishRefused, match="'3' is not an alias"):
        _publish(tmp_path, **files, aliases=("3",))
    unnamed = LogisticRegression(max_iter=1000).fit(FLOWERS.data.to_numpy(), SPECIES)
    with pytest.raises(PublishRefused, match=r"takes 4 columns, and there are 5 \(.*species\): name the --target"):
        _publish(tmp_path, **_dumped(tmp_path, unnamed, rows))
    with pytest.raises(PublishRefused, match=r"a KMeans says neither .* use --task"):
        _publish(tmp_path, **_dumped(tmp_path, KMeans(2, n_init=1).fit(FLOWERS.data), rows))
    with pytest.raises(PublishRefused, match=r"toy\.joblib holds a dict, without predict"):
        _publish(tmp_path, **_dumped(tmp_path, {}, rows))
    assert not (tmp_path / "models").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """It does all the rest, with the number that the version would have."""
    files = _dumped(tmp_path, CLASSIFIER, FLOWERS.data.assign(species=SPECIES))
    assert _publish(tmp_path, **files, dry_run=True).version == 1
    assert not (tmp_path / "models").exists()
    _publish(tmp_path, **files)
    assert _publish(tmp_path, **files, dry_run=True, aliases=("champion",)).version == 2
    source = DirectorySource(tmp_path / "models")
    assert (source.versions("toy"), source.aliases("toy")) == ([1], {"champion": 1})
    with pytest.raises(PublishRefused, match="toy 1 exists already"):
        _publish(tmp_path, **files, dry_run=True, version=1)


def test_a_version_of_another_place(tmp_path: Path) -> None:
    """Its folder is copied under the next number; what does not have its digest is refused."""
    write_classifier(tmp_path / "elsewhere", version=3)
    folder = tmp_path / "elsewhere/toy/3"
    _publish(tmp_path, folder, version=3)
    _publish(tmp_path, folder, aliases=("v4",))
    source = DirectorySource(tmp_path / "models")
    assert (source.folder("toy", 3) / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()
    assert source.aliases("toy") == {"champion": 3, "v4": 4}
    assert source.manifest("toy", 4).golden == source.manifest("toy", 3).golden
    (folder / "model.joblib").write_bytes(b"another")
    with pytest.raises(PublishRefused, match=r"elsewhere/toy/3: the artefact is not the one"):
        _publish(tmp_path, folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(PublishRefused, match=r"manifest\.json: name: Field required"):
        _publish(tmp_path, folder)


def test_a_model_of_mlflows(tmp_path: Path) -> None:
    """Signature and example take the place of data; a model of another scikit-learn is refused before it is opened."""
    folder = _mlflow_folder(tmp_path)
    manifest = _publish(tmp_path, folder, origin="models:/flowers/3 at http://mlflow.example")
    assert {field.dtype for field in manifest.fields} == {"float"}
    assert manifest.fields[0].minimum is None
    assert manifest.training.data == "the input example of MLflow's model, 15 rows"
    assert manifest.origin.recipe == "models:/flowers/3 at http://mlflow.example"
    row = dict(zip(FLOWERS.data.columns, FLOWERS.data.iloc[120].tolist(), strict=True))
    assert _answers(tmp_path, [row]) == ["virginica"]
    document = yaml.safe_load((folder / "MLmodel").read_text())
    document["flavors"]["sklearn"]["sklearn_version"] = "0.24.2"
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    (folder / "model.pkl").write_bytes(b"no pickle")
    with pytest.raises(PublishRefused, match=r"with scikit-learn 0\.24\.2, and this is 1\."):
        _publish(tmp_path, folder)


def _mlflow_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "logged"
    folder.mkdir()
    joblib.dump(CLASSIFIER, folder / "model.pkl")
    columns = list(FLOWERS.data.columns)
    library = installed("scikit-learn")
    flavor = {"pickled_model": "model.pkl", "serialization_format": "pickle", "sklearn_version": library}
    document = {
        "flavors": {"sklearn": flavor},
        "saved_input_example_info": {"artifact_path": "example.json"},
        "signature": {"inputs": json.dumps([{"type": "double", "name": name} for name in columns])},
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    rows = FLOWERS.data.iloc[::10].to_numpy().tolist()
    (folder / "example.json").write_text(json.dumps({"columns": columns, "data": rows}))
    return folder


def test_a_copy_needs_no_other_file(tmp_path: Path) -> None:
    """What else lies in the folder stays there."""
    write_classifier(tmp_path / "elsewhere")
    folder = tmp_path / "elsewhere/toy/1"
    (folder / "notes.txt").touch()
    shutil.copy(folder / "model.joblib", folder / "model.bak")
    _publish(tmp_path, folder)
    copied = {entry.name for entry in (tmp_path / "models/toy/1").iterdir()}
    assert copied == {"manifest.json", "model.joblib"}
