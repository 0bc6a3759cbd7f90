"""Version folders written by hand, right or wrong in whatever way a test wants."""

import hashlib
import io
import platform
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.linear_model import LogisticRegression

from app.manifest import Artefact, Golden, GoldenRow, InputField, Manifest, Outputs, Versions
from tests.support.manifests import make_manifest

X = InputField(name="x", dtype="float", minimum=0.0, maximum=20.0)
LABELS = Outputs(target="size", labels=("small", "big"))
NUMBER = Outputs(target="number")
HERE = Versions(
    python=platform.python_version(),
    scikit_learn=installed("scikit-learn"),
    numpy=installed("numpy"),
    scipy=installed("scipy"),
    joblib=installed("joblib"),
)


def write_version(root: Path, estimator: Any, *, compress: int = 0, **changes: Any) -> Manifest:
    """A version of `toy` 1 unless `changes` to its manifest say otherwise; its one golden row is x = 1."""
    buffer = io.BytesIO()
    joblib.dump(estimator, buffer, compress=compress)
    return write_raw(root, buffer.getvalue(), **changes)


def write_raw(root: Path, raw: bytes, **changes: Any) -> Manifest:
    """The same of an artefact that is there already."""
    changes.setdefault("artefact", Artefact(sha256=hashlib.sha256(raw).hexdigest(), size=len(raw), container="matrix"))
    changes.setdefault("versions", HERE)
    manifest = make_manifest(X, **changes)
    folder = root / manifest.name / str(manifest.version)
    folder.mkdir(parents=True)
    (folder / "model.joblib").write_bytes(raw)
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return manifest


def write_classifier(root: Path, **changes: Any) -> Manifest:
    """A logistic regression that tells x under 10 from x over 10."""
    numbers = np.arange(20.0).reshape(-1, 1)
    estimator = LogisticRegression().fit(numbers, numbers[:, 0] >= 10)
    small = estimator.predict_proba([[1.0]])[0].tolist()
    golden = GoldenRow(inputs={"x": 1.0}, prediction="small", probabilities={"small": small[0], "big": small[1]})
    outputs = LABELS.model_copy(update={"probabilities": True})
    return write_version(root, estimator, **{"outputs": outputs, "golden": Golden(rows=(golden,)), **changes})


def one_golden(prediction: Any, **inputs: Any) -> Golden:
    """A golden row without probabilities."""
    return Golden(rows=(GoldenRow(inputs=inputs or {"x": 1.0}, prediction=prediction),))
