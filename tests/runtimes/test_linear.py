"""Folded linear models answer as scikit-learn does, whatever stands before them; what does not fold is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Perceptron, Ridge, RidgeClassifier, SGDClassifier
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import LinearSVC, LinearSVR

from app.errors import ModelFailed
from app.manifest import Task
from app.runtimes.folding import NotFoldable
from app.runtimes.linear import build_linear
from app.runtimes.sklearn import SklearnRuntime
from tests.support.agreement import assert_same_answers

STEPS: list[Any] = [
    StandardScaler(),
    StandardScaler(with_mean=False),
    StandardScaler(with_std=False),
    RobustScaler(),
    RobustScaler(with_centering=False),
    MinMaxScaler((-1, 3)),
    MaxAbsScaler(),
    PCA(3, whiten=True, random_state=0),
    SelectKBest(k=3),
    VarianceThreshold(),
    FunctionTransformer(),
]
CLASSIFIERS: list[Any] = [
    LogisticRegression(),
    SGDClassifier(loss="log_loss", random_state=0),
    SGDClassifier(loss="modified_huber", random_state=0),
    SGDClassifier(random_state=0),
    LinearSVC(random_state=0),
    RidgeClassifier(),
    Perceptron(random_state=0),
    LinearDiscriminantAnalysis(),
    CalibratedClassifierCV(LinearSVC(random_state=0), cv=2),
    CalibratedClassifierCV(LogisticRegression(), cv=2, ensemble=False, method="isotonic"),
    CalibratedClassifierCV(make_pipeline(StandardScaler(), LogisticRegression()), cv=2, method="isotonic"),
]
REGRESSIONS: list[Any] = [LinearRegression(), Ridge(), SGDClassifier, LinearSVR(random_state=0)]
REGRESSIONS.remove(SGDClassifier)


def _numbers(classes: int) -> tuple[Any, Any]:
    X, y = make_classification(120, 5, n_informative=4, n_redundant=0, n_classes=classes, flip_y=0.2, random_state=1)
    return X * [1.0, 100.0, 0.01, 5.0, 1.0] + [0.0, 50.0, 0.0, -7.0, 1.0], y


def _form(estimator: Any, task: Task = "classification") -> Any:
    return build_linear(SklearnRuntime(estimator, task))


def _check(estimator: Any, X: Any, task: Task = "classification") -> None:
    """Together, and each alone: there are two ways through most forms."""
    form, reference = _form(estimator, task), SklearnRuntime(estimator, task)
    assert_same_answers(form, reference, X, len(X))
    for row in X[:40]:
        assert_same_answers(form, reference, row[None, :], 1)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.sampled_from(STEPS), max_size=3),
    final=st.sampled_from(CLASSIFIERS),
    classes=st.sampled_from([2, 3]),
    scale=st.sampled_from([1.0, 1e-9, 1e4]),
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scaling_selection_and_projection_fold_into_weights(
    steps: list[Any], final: Any, classes: int, scale: float
) -> None:
    """Any of them in any order, under any linear classifier, for rows near training and far from it."""
    X, y = _numbers(classes)
    try:
        fitted = make_pipeline(*map(clone, steps), clone(final)).fit(X, y)
    except ValueError:  # three columns cannot be selected from two: nothing that could be served
        return
    _check(fitted, np.vstack([X, X * scale, np.zeros((1, 5))]))


@pytest.mark.parametrize("final", REGRESSIONS, ids=lambda e: type(e).__name__)
def test_regressions_fold(final: Any) -> None:
    """A number for each row; also where the target was a column."""
    X, y = _numbers(3)
    _check(make_pipeline(StandardScaler(), final).fit(X, y * 10.0), X, "regression")


def test_a_target_that_was_a_column_is_one_number_a_row() -> None:
    """As it is when a DataFrame of one column was the target; scikit-learn then answers a column."""
    X, y = _numbers(3)
    fitted = LinearRegression().fit(X, y[:, None])
    assert fitted.predict(X).shape == (120, 1)
    _check(fitted, X, "regression")


def _table(gaps: bool) -> Any:  # noqa: FBT001 -- a parameter of tests
    rng = np.random.default_rng(0)
    rows = [
        [
            float(rng.normal()),
            ("red", "green", "blue")[rng.integers(3)],
            int(rng.integers(4)),
            bool(rng.integers(2)),
            3.5,
        ]
        for _ in range(150)
    ]
    if gaps:
        for row in rows[::7]:
            row[0] = np.nan
        for row in rows[::11]:
            row[1] = np.nan
    return np.array(rows, dtype=object)


@pytest.mark.parametrize("drop", [None, "first", "if_binary"])
@pytest.mark.parametrize("unknown", ["error", "ignore"])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_table_of_mixed_values_folds(drop: Any, unknown: Any, gaps: bool, classes: int) -> None:  # noqa: FBT001
    """Numbers scaled and filled, categories encoded, columns left as they are and left out."""
    X = _table(gaps)
    y = np.array([int(str(row[1]) > "g") + int(row[2] > 1) for row in X]) % classes
    encode: list[Any] = [OneHotEncoder(drop=drop, handle_unknown=unknown)]
    table = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), [0]),
            ("colours", make_pipeline(*encode, StandardScaler(with_mean=False)), [1]),
            ("counts", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), [2]),
            ("flags", OneHotEncoder(drop="if_binary"), [3]),
            ("again", "passthrough", [2]),
        ],
        transformer_weights={"colours": 2.0},
    )
    fitted = make_pipeline(table, SelectKBest(k=4), LogisticRegression()).fit(X, y)
    _check(fitted, X)
    strange = X[:1].copy()
    strange[0, 1] = "purple"
    if unknown == "ignore" and drop is None:
        _check(fitted, strange)
    elif unknown == "error":
        with pytest.raises(ModelFailed, match="unknown"):
            _form(fitted).predict(strange, 1)


def test_gaps_in_categories_are_filled_first() -> None:
    """With the most frequent category, which is then encoded."""
    X = _table(gaps=True)
    y = [int(str(row[1]) > "g") for row in X]
    inner = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
    table = ColumnTransformer([("colours", inner, [1])], remainder="drop")
    _check(make_pipeline(table, LogisticRegression()).fit(X, y), X)


def test_gaps_are_filled_or_refused_as_scikit_learn_does() -> None:
    """With an imputer they are a number like any other; without one, both fail."""
    X, y = _numbers(2)
    X[::3, 1] = np.nan
    _check(make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), LogisticRegression()).fit(X, y), X)
    whole, _ = _numbers(2)
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(whole, y)
    for rows in (X[:1], X[:30]):
        with pytest.raises(ValueError, match="NaN"):
            SklearnRuntime(fitted, "classification").predict(rows, len(rows))
        with pytest.raises(ModelFailed):
            _form(fitted).predict(rows, len(rows))


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (make_pipeline(PolynomialFeatures(), RidgeClassifier()), "PolynomialFeatures"),
        (make_pipeline(MinMaxScaler(clip=True), LogisticRegression()), "clips"),
        (make_pipeline(FunctionTransformer(np.abs), LogisticRegression()), "calls a function"),
        (make_pipeline(MinMaxScaler(), MultinomialNB()), "negative"),
        (make_pipeline(SimpleImputer(add_indicator=True), LogisticRegression()), "SimpleImputer"),
        (make_pipeline(SimpleImputer(missing_values=4.0), LogisticRegression()), "SimpleImputer"),
        (make_pipeline(OneHotEncoder(min_frequency=2, handle_unknown="ignore"), LogisticRegression()), "rare"),
        (make_pipeline(OneHotEncoder(handle_unknown="infrequent_if_exist"), LogisticRegression()), "unknown"),
        (RandomForestClassifier(2), "no linear model"),
        (
            ColumnTransformer([("a", SimpleImputer(), [0]), ("b", "passthrough", [0, 1])]),
            "fill the gaps",
        ),
        (CalibratedClassifierCV(make_pipeline(SimpleImputer(), LogisticRegression()), cv=2), "ensemble"),
    ],
)
def test_what_does_not_fold_exactly_is_refused(estimator: Any, reason: str) -> None:
    """With a reason that names what it is."""
    X, y = _numbers(2)
    if isinstance(estimator, ColumnTransformer):
        estimator = make_pipeline(estimator, LogisticRegression())
    with pytest.raises(NotFoldable, match=reason):
        _form(estimator.fit(np.round(X), y))


def test_floats_and_several_outputs_are_refused() -> None:
    """A model that computes in floats, and one that answers several numbers."""
    X, y = _numbers(2)
    with pytest.raises(NotFoldable, match="float32"):
        _form(LogisticRegression().fit(X.astype(np.float32), y))
    with pytest.raises(NotFoldable, match="several numbers"):
        _form(LinearRegression().fit(X, np.stack([y, y], axis=1)), "regression")


def test_another_shape_than_the_models_is_a_failure() -> None:
    """Of rows, or of columns."""
    X, y = _numbers(2)
    form = _form(LogisticRegression().fit(X, y))
    for wrong, rows in ((X, 3), (X[:, :2], len(X))):
        with pytest.raises(ModelFailed):
            form.predict(wrong, rows)
