"""Version folders written by hand, right or wrong in whatever way a test wants."""

import hashlib
import io
import platform
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LogisticRegression

from app.manifest import (
    TRAFFIC_RULES_FILE,
    Artefact,
    Golden,
    GoldenRow,
    InputField,
    Manifest,
    Outputs,
    TrafficRules,
    Versions,
)
from app.registry.aliases import ALIASES_FILE, write_aliases
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


def write_classifier(root: Path, *, big: float = 10, **changes: Any) -> Manifest:
    """A logistic regression that tells x under 10, or from where on it is `big`, from x over that."""
    numbers = np.arange(20.0).reshape(-1, 1)
    estimator = LogisticRegression().fit(numbers, numbers[:, 0] >= big)
    small = estimator.predict_proba([[1.0]])[0].tolist()
    golden = GoldenRow(inputs={"x": 1.0}, prediction="small", probabilities={"small": small[0], "big": small[1]})
    outputs = LABELS.model_copy(update={"probabilities": True})
    return write_version(root, estimator, **{"outputs": outputs, "golden": Golden(rows=(golden,)), **changes})


def write_roles(root: Path, name: str, aliases: dict[str, int], **rules: Any) -> None:
    """What a model's aliases name, and its rules of traffic."""
    write_aliases(root / name / ALIASES_FILE, aliases)
    (root / name / TRAFFIC_RULES_FILE).write_text(TrafficRules(**rules).model_dump_json())


def one_golden(prediction: Any, **inputs: Any) -> Golden:
    """A golden row without probabilities."""
    return Golden(rows=(GoldenRow(inputs=inputs or {"x": 1.0}, prediction=prediction),))


def write_constant(root: Path, version: int, *, ballast: int = 0, **changes: Any) -> Manifest:
    """A version of `toy` that answers its own number, whatever it is asked, and has so many bytes of ballast."""
    estimator = DummyRegressor(strategy="constant", constant=float(version)).fit([[0.0]], [0.0])
    estimator.ballast_ = np.zeros(ballast, dtype=np.uint8)
    golden = one_golden(float(version))
    return write_version(
        root, estimator, **{"version": version, "task": "regression", "outputs": NUMBER, "golden": golden, **changes}
    )


def point(root: Path, name: str = "toy", **aliases: int) -> None:
    """Replace the model's aliases as a whole."""
    write_aliases(root / name / ALIASES_FILE, aliases)
