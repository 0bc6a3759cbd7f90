"""The runtime of record: scikit-learn itself."""

from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from app.errors import ModelFailed
from app.manifest import Task
from app.pipelines.base import RawOutput
from app.runtimes.threads import walk_estimators

# Their `predict` is the label of the largest probability, by their own source; so one pass gives both. Others are asked
# twice after one pass of their transformers: a tuned threshold or an SVM may well answer another label. By name, since
# importing all their modules would cost the start of a server that needs one of them half a second.
_LARGEST_PROBABILITY = frozenset(
    {
        "LogisticRegression",
        "RandomForestClassifier",
        "ExtraTreesClassifier",
        "HistGradientBoostingClassifier",
        "DecisionTreeClassifier",
        "ExtraTreeClassifier",
        "BaggingClassifier",
        "CalibratedClassifierCV",
        "GaussianNB",
        "MultinomialNB",
        "BernoulliNB",
        "ComplementNB",
        "MLPClassifier",
    }
)


class SklearnRuntime:
    """Calls a fitted estimator, and checks that what it answers is one finite answer for each row."""

    name = "scikit-learn"

    def __init__(self, estimator: Any, task: Task) -> None:
        self.estimator = estimator
        self._transform, self._final = _split(estimator)
        self._regression = task == "regression"
        self._classes = np.asarray([] if self._regression else self._final.classes_)
        self._has_probabilities = hasattr(self._final, "predict_proba")
        # A custom estimator may sleep, or ask a database; so it never works on the event loop.
        self.steady = all(_is_sklearns(inner) for inner in walk_estimators(estimator))
        self._label_is_largest = _is_sklearns(self._final) and type(self._final).__name__ in _LARGEST_PROBABILITY

    @property
    def classes(self) -> list[Any]:
        """The estimator's own classes, in its order; a regression has none."""
        classes: list[Any] = self._classes.tolist()
        return classes

    @property
    def has_probabilities(self) -> bool:
        """Whether the estimator answers probabilities."""
        return self._has_probabilities and not self._regression

    def predict(self, inputs: Any, rows: int) -> RawOutput:
        """Answer for `rows` rows. Raises ModelFailed for an answer of another shape, or one that is not finite."""
        features = inputs if self._transform is None else self._transform.transform(inputs)
        if self._regression:
            return RawOutput(values=_checked(np.asarray(self._final.predict(features), dtype=np.float64), (rows,)))
        probabilities = None
        if self._has_probabilities:
            probabilities = _checked(self._final.predict_proba(features), (rows, len(self._classes)))
            if self._label_is_largest:
                return RawOutput(classes=probabilities.argmax(axis=1), probabilities=probabilities)
        return RawOutput(classes=self._indices(self._final.predict(features), rows), probabilities=probabilities)

    def _indices(self, labels: Any, rows: int) -> Any:
        labels = np.asarray(labels)
        if labels.shape != (rows,):
            raise ModelFailed("the model answered another number of rows than it was asked")
        matches = labels[:, None] == self._classes[None, :]
        if not matches.any(axis=1).all():
            raise ModelFailed("the model answered a label that is not among its classes")
        return matches.argmax(axis=1)


def _split(estimator: Any) -> tuple[Any, Any]:
    """The transformers and the final estimator of a pipeline, so that labels and probabilities share one transform."""
    if isinstance(estimator, Pipeline) and len(estimator.steps) > 1:
        return estimator[:-1], estimator[-1]
    return None, estimator


def _is_sklearns(estimator: Any) -> bool:
    return type(estimator).__module__.partition(".")[0] == "sklearn"


def _checked(answer: Any, shape: tuple[int, ...]) -> Any:
    answer = np.asarray(answer)
    if answer.shape != shape:
        raise ModelFailed("the model answered another number of rows or classes than it was asked")
    if not np.isfinite(answer).all():
        raise ModelFailed("the model answered a number that is not finite")
    return answer
