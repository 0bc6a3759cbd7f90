"""The runtime answers what the estimator's own methods answer, in one pass where that is the same thing."""

from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import TunedThresholdClassifierCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from app.errors import ModelFailed
from app.runtimes.sklearn import SklearnRuntime

CLASSIFIERS: list[Any] = [
    LogisticRegression(),
    RandomForestClassifier(20, random_state=0),
    ExtraTreesClassifier(20, random_state=0),
    GradientBoostingClassifier(n_estimators=5, random_state=0),
    HistGradientBoostingClassifier(max_iter=5),
    DecisionTreeClassifier(max_depth=2),
    GaussianNB(),
    KNeighborsClassifier(4),
    MLPClassifier((4,), max_iter=2000, random_state=0),
    SVC(),
    LinearSVC(),
    CalibratedClassifierCV(LinearSVC()),
    TunedThresholdClassifierCV(LogisticRegression(), scoring="recall"),
    make_pipeline(StandardScaler(), LogisticRegression()),
]


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("classes", [2, 3])
def test_labels_are_those_of_predict_and_probabilities_those_of_predict_proba(estimator: Any, classes: int) -> None:
    """For every row, whatever the estimator derives its labels from."""
    if classes > 2 and isinstance(estimator, TunedThresholdClassifierCV):
        pytest.skip("it is for two classes")
    X, y = make_classification(200, 6, n_informative=4, n_classes=classes, flip_y=0.3, random_state=0)
    fitted = estimator.fit(X, y)
    runtime = SklearnRuntime(fitted, "classification")
    answer = runtime.predict(X, len(X))
    assert [runtime.classes[i] for i in answer.classes] == fitted.predict(X).tolist()
    if runtime.has_probabilities:
        assert np.allclose(answer.probabilities, fitted.predict_proba(X), atol=1e-12)
    else:
        assert answer.probabilities is None


def test_a_tie_is_broken_as_the_estimator_breaks_it() -> None:
    """Gradient boosting says the second class where both have a half; the larger of two equals would be the first."""
    X, y = np.zeros((10, 1)), np.array([0, 1] * 5)
    fitted = GradientBoostingClassifier(n_estimators=2).fit(X, y)
    answer = SklearnRuntime(fitted, "classification").predict(X, 10)
    assert answer.probabilities[0].tolist() == [0.5, 0.5]
    assert answer.classes.tolist() == fitted.predict(X).tolist() == [1] * 10


def test_a_regression_answers_a_number_for_each_row() -> None:
    """One finite number."""
    X, y = make_regression(50, 3, random_state=0)
    fitted = Ridge().fit(X, y)
    assert SklearnRuntime(fitted, "regression").predict(X, 50).values.tolist() == fitted.predict(X).tolist()


class _Liar(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Says what it was told to say."""

    def __init__(self, labels: Any = None, shares: Any = None) -> None:
        self.labels = labels
        self.shares = shares
        self.classes_ = np.array([0, 1])

    def predict(self, X: Any) -> Any:
        return np.array(self.labels)

    def predict_proba(self, X: Any) -> Any:
        return np.array(self.shares)


@pytest.mark.parametrize(
    ("labels", "shares"),
    [
        ([0, 1], [[1.0, 0.0]]),
        ([0], [[0.5, 0.25, 0.25]]),
        ([0], [[float("nan"), 1.0]]),
        ([2], [[1.0, 0.0]]),
        ([[0]], [[1.0, 0.0]]),
    ],
)
def test_an_answer_that_is_none_is_a_failure(labels: Any, shares: Any) -> None:
    """Of another shape, not finite, or a label that is no class."""
    with pytest.raises(ModelFailed):
        SklearnRuntime(_Liar(labels, shares), "classification").predict(np.zeros((1, 1)), 1)


class _Counting(StandardScaler):  # type: ignore[misc]
    """Counts how often it is asked to scale."""

    asked = 0

    def transform(self, X: Any, copy: Any = None) -> Any:
        type(self).asked += 1
        return super().transform(X, copy)


def test_labels_and_probabilities_are_one_pass() -> None:
    """What comes before the last step is done once, not once for each of both."""
    X, y = np.arange(12.0).reshape(-1, 2), np.array([0, 1, 0, 1, 0, 1])
    runtime = SklearnRuntime(make_pipeline(_Counting(), LogisticRegression()).fit(X, y), "classification")
    _Counting.asked = 0
    answer = runtime.predict(X, len(X))
    assert answer.probabilities is not None
    assert answer.classes is not None
    assert _Counting.asked == 1
