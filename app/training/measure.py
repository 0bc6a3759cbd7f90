"""Cross-validation with fixed seeds: figures, and for each row the answer of an estimator that never saw it."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

from app.manifest import Evaluation
from app.pipelines.base import RawOutput
from app.training.recipe import Data

FOLDS = 5
_SEED = 0


def cross_validate(build: Callable[[], Any], data: Data, *, regression: bool) -> tuple[Evaluation, RawOutput]:
    """Figures over all rows, each answered by an estimator that was fitted on the other folds; and these answers."""
    if regression:
        held_out = _numbers(build, data)
        metrics, folds = regression_metrics(data.y, held_out.values), f"{FOLDS}-fold cross-validation"
    else:
        held_out = _probabilities(build, data)
        metrics = classification_metrics(data.y, np.unique(data.y), held_out.probabilities)
        together = "" if data.groups is None else ", neighbouring rows kept together"
        folds = f"stratified {FOLDS}-fold cross-validation{together}"
    measured = f"{folds}, shuffled with seed {_SEED}; figures over all held-out answers"
    return Evaluation(data=data.description, rows=len(data.y), measured=measured, metrics=metrics), held_out


def classification_metrics(y: Any, classes: Any, probabilities: Any) -> dict[str, float]:
    """Figures of probabilities of shape (rows, classes); for two classes also the area under the ROC curve and Brier's.

    The label is that of the largest probability. Rounded to 4 digits after the point, as they are read.
    """
    labels = classes[probabilities.argmax(axis=1)]
    metrics = {
        "accuracy": accuracy_score(y, labels),
        "balanced_accuracy": balanced_accuracy_score(y, labels),
        "log_loss": log_loss(y, probabilities, labels=classes),
    }
    if len(classes) == 2:  # noqa: PLR2004 -- neither figure has one meaning for more
        last = y == classes[1]
        metrics["roc_auc"] = roc_auc_score(last, probabilities[:, 1])
        metrics["brier_score"] = brier_score_loss(last, probabilities[:, 1])
    return _rounded(metrics)


def regression_metrics(y: Any, values: Any) -> dict[str, float]:
    """Mean absolute error and root mean squared error, both in units of y, and R²."""
    return _rounded(
        {
            "mae": mean_absolute_error(y, values),
            "rmse": root_mean_squared_error(y, values),
            "r2": r2_score(y, values),
        }
    )


def _probabilities(build: Callable[[], Any], data: Data) -> RawOutput:
    classes = np.unique(data.y)
    shares = np.zeros((len(data.y), len(classes)))
    for train, test in _folds(data):
        estimator = build().fit(_taken(data.X, train), data.y[train])
        columns = np.searchsorted(classes, estimator.classes_)
        shares[np.ix_(test, columns)] = estimator.predict_proba(_taken(data.X, test))
    return RawOutput(classes=shares.argmax(axis=1), probabilities=shares)


def _numbers(build: Callable[[], Any], data: Data) -> RawOutput:
    values = np.zeros(len(data.y))
    for train, test in KFold(FOLDS, shuffle=True, random_state=_SEED).split(data.y):
        values[test] = build().fit(_taken(data.X, train), data.y[train]).predict(_taken(data.X, test))
    return RawOutput(values=values)


def _folds(data: Data) -> Iterator[tuple[Any, Any]]:
    if data.groups is None:
        yield from StratifiedKFold(FOLDS, shuffle=True, random_state=_SEED).split(data.y, data.y)
    else:
        yield from StratifiedGroupKFold(FOLDS, shuffle=True, random_state=_SEED).split(data.y, data.y, data.groups)


def _taken(X: Any, positions: Any) -> Any:
    return [X[i] for i in positions] if isinstance(X, list) else X[positions]


def _rounded(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in metrics.items()}
