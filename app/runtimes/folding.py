"""Folding: a fitted linear estimator, and the affine steps before it, as one matrix of weights and one offset.

`fold(estimator)` takes composites apart — pipelines, searches, calibration — down to linear models; `through(step, …)`
carries weights from behind a transformer to before it. What is not known to fold exactly is refused: types are compared
by name and module, since a subclass may do anything.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.runtimes.heads import (
    Calibrator,
    Head,
    calibrated,
    huber,
    isotonic,
    platt,
    respond_huber,
    respond_sigmoid,
    respond_softmax,
    sigmoid,
    softmax,
)


class NotFoldable(Exception):
    """This form does not fit the estimator, and why."""


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """scores = features · weights + offset, where the features are what `steps` make of the input.

    `weights` has shape (features, outputs), `offset` (outputs,). A regression has no `head`.
    """

    steps: tuple[Any, ...]
    weights: Any
    offset: Any
    head: Head | None


_REGRESSORS = frozenset(
    {
        "ARDRegression",
        "BayesianRidge",
        "ElasticNet",
        "ElasticNetCV",
        "HuberRegressor",
        "Lars",
        "LarsCV",
        "Lasso",
        "LassoCV",
        "LassoLars",
        "LassoLarsCV",
        "LassoLarsIC",
        "LinearRegression",
        "LinearSVR",
        "OrthogonalMatchingPursuit",
        "OrthogonalMatchingPursuitCV",
        "PassiveAggressiveRegressor",
        "QuantileRegressor",
        "Ridge",
        "RidgeCV",
        "SGDRegressor",
        "TheilSenRegressor",
    }
)
_WITHOUT_PROBABILITIES = frozenset(
    {"LinearSVC", "PassiveAggressiveClassifier", "Perceptron", "RidgeClassifier", "RidgeClassifierCV"}
)
_SIGMOID = Head(respond_sigmoid, by_score=True, positive=sigmoid)
_SOFTMAX = Head(respond_softmax, by_score=True, each=softmax)
_HUBER = Head(respond_huber, by_score=True, positive=huber)


def kind_of(estimator: Any) -> str:
    """The name of one of scikit-learn's own classes; empty for any other, a subclass included."""
    kind = type(estimator)
    return kind.__name__ if kind.__module__.startswith("sklearn.") else ""


def fold(estimator: Any) -> list[Branch]:
    """The branches whose probabilities are averaged; a single one unless a calibration is an ensemble."""
    kind = kind_of(estimator)
    if kind == "Pipeline":
        before = tuple(step for _, step in estimator.steps[:-1] if step not in (None, "passthrough"))
        return [replace(branch, steps=before + branch.steps) for branch in fold(estimator.steps[-1][1])]
    if kind in ("GridSearchCV", "RandomizedSearchCV", "HalvingGridSearchCV", "HalvingRandomSearchCV"):
        return fold(estimator.best_estimator_)
    if kind == "FrozenEstimator":
        return fold(estimator.estimator)
    if kind == "CalibratedClassifierCV":
        return [_calibrated_branch(member) for member in estimator.calibrated_classifiers_]
    return [_linear(estimator, kind)]


def through(step: Any, weights: Any, offset: Any) -> tuple[Any, Any]:
    """Weights and offset for what goes into `step`, from those for what comes out of it. Raises NotFoldable."""
    kind = kind_of(step)
    if kind in _SCALERS:
        center, scale = _SCALERS[kind](step)
        folded = weights / np.reshape(scale, (-1, 1))
        return folded, offset - np.broadcast_to(center, len(folded)) @ folded
    if kind in ("TruncatedSVD", "PCA"):
        return _through_components(step, weights, offset)
    if kind and type(step).__module__.startswith("sklearn.feature_selection."):
        kept = step.get_support()
        spread = np.zeros((len(kept), weights.shape[1]))
        spread[kept] = weights
        return spread, offset
    raise NotFoldable(f"{type(step).__name__} does not fold into weights")


def _standard(step: Any) -> tuple[Any, Any]:
    return (step.mean_ if step.with_mean else 0.0), (step.scale_ if step.with_std else 1.0)


def _robust(step: Any) -> tuple[Any, Any]:
    return (step.center_ if step.with_centering else 0.0), (step.scale_ if step.with_scaling else 1.0)


def _min_max(step: Any) -> tuple[Any, Any]:
    """It computes x · scale_ + min_."""
    return -step.min_ / step.scale_, _unclipped(step, 1.0 / step.scale_)


def _unclipped(step: Any, scale: Any) -> Any:
    if step.clip:
        raise NotFoldable(f"{type(step).__name__} clips")
    return scale


def _identity(step: Any) -> tuple[Any, Any]:
    if step.func is not None:
        raise NotFoldable("a FunctionTransformer calls a function")
    return 0.0, 1.0


# What each subtracts, and what it then divides by.
_SCALERS: Mapping[str, Callable[[Any], tuple[Any, Any]]] = {
    "StandardScaler": _standard,
    "RobustScaler": _robust,
    "MinMaxScaler": _min_max,
    "MaxAbsScaler": lambda step: (0.0, _unclipped(step, step.scale_)),
    "FunctionTransformer": _identity,
}


def _through_components(step: Any, weights: Any, offset: Any) -> tuple[Any, Any]:
    if getattr(step, "whiten", False):
        weights = weights / np.sqrt(step.explained_variance_)[:, None]
    folded = step.components_.T @ weights
    return folded, offset - (step.mean_ @ folded if hasattr(step, "mean_") else 0.0)


def _linear(estimator: Any, kind: str) -> Branch:
    if kind in ("MultinomialNB", "ComplementNB"):
        return _naive_bayes(estimator, kind)
    head = None if kind in _REGRESSORS else _head(estimator, kind)
    coefficients = np.asarray(estimator.coef_)
    if coefficients.dtype != np.float64:
        raise NotFoldable(f"it computes in {coefficients.dtype}")
    if head is None and coefficients.ndim > 1 and len(coefficients) > 1:
        raise NotFoldable("it answers several numbers for a row")
    weights = np.atleast_2d(coefficients).T
    offset = np.broadcast_to(np.asarray(estimator.intercept_, dtype=np.float64).ravel(), weights.shape[1])
    if not (np.isfinite(weights).all() and np.isfinite(offset).all()):
        raise NotFoldable("it has weights that are not finite")
    return Branch((), np.array(weights), np.array(offset), head)


def _head(estimator: Any, kind: str) -> Head:
    classes = np.asarray(getattr(estimator, "classes_", ()))
    if classes.ndim != 1 or len(classes) < 2:  # noqa: PLR2004
        raise NotFoldable(f"{type(estimator).__name__} is no linear model of one output")
    two = len(classes) == 2  # noqa: PLR2004
    match kind:
        case "LogisticRegression" | "LogisticRegressionCV":
            return replace(_SIGMOID if two else _SOFTMAX, by_score=False)
        case "LinearDiscriminantAnalysis":
            return _SIGMOID if two else _SOFTMAX
        case "SGDClassifier":
            return {"log_loss": _SIGMOID, "modified_huber": _HUBER}.get(estimator.loss, Head())
        case _ if kind in _WITHOUT_PROBABILITIES:
            return Head()
    raise NotFoldable(f"{type(estimator).__name__} is no linear model")


def _naive_bayes(estimator: Any, kind: str) -> Branch:
    """Joint log likelihoods are linear in the counts; two of them only matter by their difference."""
    weights = np.asarray(estimator.feature_log_prob_).T
    classes = weights.shape[1]
    if classes < 2:  # noqa: PLR2004
        raise NotFoldable("it has one class")
    offset = np.asarray(estimator.class_log_prior_ if kind == "MultinomialNB" else np.zeros(classes))
    if not (np.isfinite(weights).all() and np.isfinite(offset).all()):
        raise NotFoldable("it has weights that are not finite")
    if classes == 2:  # noqa: PLR2004
        head = replace(_SIGMOID, by_score=False)
        return Branch((), weights[:, 1:] - weights[:, :1], offset[1:] - offset[:1], head)
    return Branch((), np.array(weights), offset, replace(_SOFTMAX, by_score=False))


def _calibrated_branch(member: Any) -> Branch:
    """One of scikit-learn's _CalibratedClassifier: what its estimator answers, calibrated."""
    inner = fold(member.estimator)
    if len(inner) != 1 or inner[0].head is None:
        raise NotFoldable("a calibrated ensemble inside a calibration")
    calibrators = _calibrators(member)
    classes = list(member.classes)
    positions = [classes.index(label) for label in member.estimator.classes_]
    if len(classes) != len(positions):
        raise NotFoldable("a fold of its calibration has not seen all classes")
    scores_are_calibrated = hasattr(member.estimator, "decision_function")
    head = calibrated(None if scores_are_calibrated else inner[0].head, calibrators, positions, len(classes))
    return replace(inner[0], head=head)


def _calibrators(member: Any) -> Sequence[Calibrator]:
    found = []
    for calibrator in member.calibrators:
        kind = kind_of(calibrator)
        if kind == "_SigmoidCalibration":
            found.append(platt(float(calibrator.a_), float(calibrator.b_)))
        elif kind == "IsotonicRegression" and calibrator.out_of_bounds == "clip":
            found.append(isotonic(calibrator.X_thresholds_, calibrator.y_thresholds_))
        else:
            raise NotFoldable(f"calibration by {member.method} does not fold")
    return found
