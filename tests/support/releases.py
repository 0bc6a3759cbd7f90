"""Versions of a toy model that differ on purpose, and a log of what one of them has answered."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from sklearn.linear_model import LinearRegression, LogisticRegression

from app.config import ModelSettings
from app.manifest import Golden, GoldenRow
from app.registry.aliases import write_aliases
from app.registry.loader import LoadedModel, load_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.storage.database import Database
from app.storage.queries import Feedback, LoggedPrediction
from tests.support.logged import START, add, add_feedback, row
from tests.support.versions import LABELS, NUMBER, one_golden, write_classifier, write_version

MODULES = ("tests.support.estimators",)


def write_threshold(root: Path, version: int, threshold: float, **changes: Any) -> None:
    """A version that calls x big from `threshold` on, with probabilities close to 0 and 1."""
    numbers = np.arange(0.0, 20.0, 0.25).reshape(-1, 1)
    estimator = LogisticRegression(C=1e6).fit(numbers, numbers[:, 0] >= threshold)
    shares = estimator.predict_proba([[1.0]])[0].tolist()
    label = "big" if shares[1] > shares[0] else "small"
    golden = Golden(
        rows=(GoldenRow(inputs={"x": 1.0}, prediction=label, probabilities={"small": shares[0], "big": shares[1]}),)
    )
    outputs = LABELS.model_copy(update={"probabilities": True})
    write_version(root, estimator, **{"version": version, "outputs": outputs, "golden": golden, **changes})


def write_line(root: Path, version: int, factor: float, **changes: Any) -> None:
    """A regression that answers `factor` times x."""
    numbers = np.arange(20.0).reshape(-1, 1)
    estimator = LinearRegression().fit(numbers, numbers[:, 0] * factor)
    own = {"version": version, "task": "regression", "outputs": NUMBER, "golden": one_golden(factor)}
    write_version(root, estimator, **{**own, **changes})


def write_pair(root: Path, *, second: float = 9.75) -> None:
    """Versions 1, the champion, and 2 of `toy`, which answer alike but for x from 9.75 to 10."""
    write_classifier(root)
    write_threshold(root, 2, second)
    write_aliases(root / "toy" / "aliases.json", {"champion": 1})


def load(root: Path, version: int = 1) -> LoadedModel:
    """A version, with scikit-learn answering."""
    return load_version(DirectorySource(root), "toy", version, Trust(MODULES))


def settings(root: Path) -> ModelSettings:
    """Those of a service with these models."""
    return ModelSettings(models_dir=root, model_modules=MODULES, compile="off", default_model="toy")


def answered(model: LoadedModel, values: Iterable[float]) -> list[dict[str, Any]]:
    """Rows of the log: what the version answers to each x, a millisecond after the other."""
    rows = model.pipeline.validate([{"x": value} for value in values])
    valid: Sequence[Any] = rows
    answers = model.pipeline.postprocess(model.runtime.predict(model.pipeline.preprocess(valid), len(valid)))
    return [
        row(
            place,
            version=model.version,
            inputs=dict(given),
            output=answer.value,
            label=None if isinstance(answer.value, float) else str(answer.value),
            probabilities=answer.probabilities,
        )
        for place, (given, answer) in enumerate(zip(valid, answers, strict=True))
    ]


def logged(values: dict[str, Any], truth: Any = None) -> LoggedPrediction:
    """A row as it is read, with feedback where there is a truth."""
    feedback = None if truth is None else Feedback(truth, START, START, "anonymous", 0)
    return LoggedPrediction(**values, feedback=feedback)


def fill(database: Database, rows: Sequence[dict[str, Any]], truths: Sequence[Any] = ()) -> list[UUID]:
    """Put rows into the log, with feedback on the first of them."""
    identifiers = add(database, *rows)
    for identifier, truth in zip(identifiers, truths, strict=False):
        add_feedback(database, identifier, truth)
    return identifiers
