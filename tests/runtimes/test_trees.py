"""Trees in other forms answer as scikit-learn does, at their thresholds and beside them."""

from typing import Any

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_classification
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor

from app.errors import ModelFailed
from app.manifest import Task
from app.runtimes.folding import NotFoldable
from app.runtimes.sklearn import SklearnRuntime
from app.runtimes.thresholds import raw_thresholds
from app.runtimes.trees import build_trees
from tests.support.agreement import assert_same_answers

CLASSIFIERS: list[Any] = [
    RandomForestClassifier(20, random_state=0),
    RandomForestClassifier(4, max_depth=2, random_state=0),
    ExtraTreesClassifier(20, random_state=0),
    GradientBoostingClassifier(n_estimators=10, random_state=0),
    HistGradientBoostingClassifier(max_iter=10),
    DecisionTreeClassifier(max_depth=4, random_state=0),
    ExtraTreeClassifier(random_state=0),
    make_pipeline(StandardScaler(), RandomForestClassifier(10, random_state=0)),
]
REGRESSIONS: list[Any] = [
    RandomForestRegressor(20, random_state=0),
    ExtraTreesRegressor(20, random_state=0),
    GradientBoostingRegressor(n_estimators=10, random_state=0),
    HistGradientBoostingRegressor(max_iter=10),
    HistGradientBoostingRegressor(max_iter=10, loss="poisson"),
    DecisionTreeRegressor(max_depth=4, random_state=0),
    ExtraTreeRegressor(random_state=0),
]
MISSING: list[Any] = [
    RandomForestClassifier(20, random_state=0),
    HistGradientBoostingClassifier(max_iter=10),
    DecisionTreeClassifier(max_depth=4, random_state=0),
]


def _data(classes: int) -> tuple[Any, Any]:
    return make_classification(300, 6, n_informative=4, n_classes=classes, flip_y=0.2, random_state=0)  # type: ignore[no-any-return]


def _at_thresholds(estimator: Any, X: Any) -> Any:
    """Rows with one number exactly at a threshold, and one step of a double or of a float beside it."""
    rows = []
    for number, (column, threshold) in enumerate(raw_thresholds(estimator)[:300]):
        single = np.float32(threshold)
        for value in (
            threshold,
            np.nextafter(threshold, -np.inf),
            np.nextafter(threshold, np.inf),
            single,
            np.nextafter(single, np.float32(np.inf)),
            np.nextafter(single, np.float32(-np.inf)),
        ):
            if abs(value) <= np.finfo(np.float32).max:  # gaps against all else are a threshold at infinity
                rows.append(X[number % len(X)].copy())
                rows[-1][column] = value
    return np.array(rows or X[:1])


def _check(estimator: Any, X: Any, task: Task = "classification") -> None:
    reference = SklearnRuntime(estimator, task)
    form = build_trees(reference)
    rows = np.vstack([X, _at_thresholds(estimator, X)])
    assert_same_answers(form, reference, rows, len(rows))
    for row in rows[:20]:
        assert_same_answers(form, reference, row[None, :], 1)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda e: type(e).__name__)
def test_classifiers_answer_the_same_at_every_threshold(estimator: Any, classes: int) -> None:
    """Exactly at it, and one step beside it: they compare floats with doubles as scikit-learn does."""
    X, y = _data(classes)
    _check(estimator.fit(X, y), X)


@pytest.mark.parametrize("estimator", REGRESSIONS, ids=lambda e: type(e).__name__)
def test_regressions_answer_the_same_at_every_threshold(estimator: Any) -> None:
    """The number that the leaves give."""
    X, y = _data(3)
    _check(estimator.fit(X, y + X[:, 0] ** 2), X, "regression")


@pytest.mark.parametrize("estimator", MISSING, ids=lambda e: type(e).__name__)
def test_gaps_go_the_way_that_training_gave_them(estimator: Any) -> None:
    """Where an estimator takes NaN, so does its form."""
    X, y = _data(2)
    X[::3, 1] = np.nan
    X[::5, 4] = np.nan
    _check(estimator.fit(X, y), X)


def test_gaps_that_scikit_learn_refuses_are_refused() -> None:
    """Gradient boosting does not take NaN, and nothing takes infinity."""
    X, y = _data(2)
    form = build_trees(SklearnRuntime(GradientBoostingClassifier(n_estimators=2).fit(X, y), "classification"))
    forest = build_trees(SklearnRuntime(RandomForestClassifier(2).fit(X, y), "classification"))
    for runtime, value in ((form, np.nan), (form, np.inf), (forest, np.inf)):
        with pytest.raises(ModelFailed, match="not finite"):
            runtime.predict(np.full((1, 6), value), 1)
    with pytest.raises(ModelFailed, match="rows"):
        form.predict(X, 2)


def test_boosting_with_the_exponential_loss_doubles_its_scores() -> None:
    """Its probability is the sigmoid of twice the score."""
    X, y = _data(2)
    _check(GradientBoostingClassifier(n_estimators=10, loss="exponential", random_state=0).fit(X, y), X)


def test_a_tie_is_broken_as_gradient_boosting_breaks_it() -> None:
    """It says the second class where both have a half."""
    X, y = np.zeros((10, 1)), np.array([0, 1] * 5)
    reference = SklearnRuntime(GradientBoostingClassifier(n_estimators=2).fit(X, y), "classification")
    assert build_trees(reference).predict(X, 10).classes.tolist() == [1] * 10


def test_what_stands_before_the_trees_stays_as_it_is() -> None:
    """A table of mixed values is encoded by scikit-learn, and the trees see numbers."""
    rng = np.random.default_rng(0)
    X = np.array([[float(rng.normal()), ("a", "b")[rng.integers(2)]] for _ in range(80)], dtype=object)
    table = ColumnTransformer([("letters", OneHotEncoder(sparse_output=False), [1])], remainder="passthrough")
    fitted = make_pipeline(table, RandomForestClassifier(5, random_state=0)).fit(X, [row[1] > "a" for row in X])
    reference = SklearnRuntime(fitted, "classification")
    assert_same_answers(build_trees(reference), reference, X, len(X))


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (LogisticRegression(), "no trees"),
        (AdaBoostClassifier(n_estimators=2), "no trees"),
        (GradientBoostingClassifier(n_estimators=2, init=LogisticRegression()), "treelite does not take it"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(estimator: Any, reason: str) -> None:
    """With a reason that names what it is."""
    X, y = _data(2)
    with pytest.raises(NotFoldable, match=reason):
        build_trees(SklearnRuntime(estimator.fit(X, y), "classification"))
