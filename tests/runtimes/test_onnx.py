"""ONNX Runtime answers as scikit-learn does for what no other form fits, in doubles or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.ensemble import AdaBoostClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from app.errors import ModelFailed
from app.registry.loader import load_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.runtimes.compile import Compiling
from app.runtimes.folding import NotFoldable
from app.runtimes.onnx import build_onnx
from app.runtimes.sklearn import SklearnRuntime
from app.training.options import Options
from app.training.publish import publish
from tests.support.agreement import assert_same_answers


def _data(classes: int = 2) -> tuple[Any, Any]:
    return make_classification(200, 5, n_informative=4, n_redundant=0, n_classes=classes, random_state=0)  # type: ignore[no-any-return]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "estimator",
    [make_pipeline(StandardScaler(), MLPClassifier((6,), max_iter=3000, random_state=0)), GaussianNB(), SVC()],
    ids=["network", "naive Bayes", "kernel"],
)
@pytest.mark.parametrize("words", [False, True])
def test_classifiers_agree(estimator: Any, classes: int, words: bool) -> None:  # noqa: FBT001
    """With probabilities and without, and with labels that are words."""
    X, y = _data(classes)
    labels = np.array(["a", "b", "c"])[y] if words else y
    reference = SklearnRuntime(estimator.fit(X, labels), "classification")
    form = build_onnx(reference)
    assert_same_answers(form, reference, X, len(X))
    assert_same_answers(form, reference, X[:1], 1)


def test_regressions_agree() -> None:
    """A number for each row."""
    X, y = _data()
    reference = SklearnRuntime(
        MLPRegressor(hidden_layer_sizes=(4,), max_iter=3000, random_state=0).fit(X, y), "regression"
    )
    assert_same_answers(build_onnx(reference), reference, X, len(X))


def test_what_cannot_be_converted_in_doubles_is_refused() -> None:
    """Floats would give another label beside a boundary."""
    X, y = _data()
    voting = VotingClassifier([("a", LogisticRegression()), ("b", GaussianNB())], voting="soft")
    for estimator in (AdaBoostClassifier(n_estimators=3), voting):
        with pytest.raises(NotFoldable, match="in doubles"):
            build_onnx(SklearnRuntime(estimator.fit(X, y), "classification"))


def test_gaps_are_left_to_scikit_learn() -> None:
    """Which refuses them, or knows what to do."""
    X, y = _data()
    form = build_onnx(SklearnRuntime(GaussianNB().fit(X, y), "classification"))
    with pytest.raises(ModelFailed, match="not finite"):
        form.predict(X * np.nan, len(X))


def test_it_is_tried_where_nothing_else_fits(tmp_path: Path) -> None:
    """A network gets it; a linear model has a faster form, and does not pay for the import."""
    X, y = _data()
    options: Any = {"models_dir": tmp_path, "field_names": tuple("abcde")}
    network = MLPClassifier((6,), max_iter=3000, random_state=0).fit(X, y)
    publish("network", network, X, y, task="classification", options=Options(**options))
    publish("linear", LogisticRegression().fit(X, y), X, y, task="classification", options=Options(**options))
    forms = {
        name: {form.form: form for form in load_version(DirectorySource(tmp_path), name, 1, Trust(), Compiling()).forms}
        for name in ("network", "linear")
    }
    assert forms["network"]["ONNX Runtime"].chosen_for
    assert "ONNX Runtime" not in forms["linear"]
