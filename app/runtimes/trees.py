"""Trees: forests and boosted trees through treelite, and a single tree as plain lists.

treelite walks a row through a forest of 100 trees in 30 µs, where scikit-learn takes milliseconds; for many rows at
once scikit-learn is the faster one, so the size of a call decides. Steps before the trees stay scikit-learn's.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import treelite
import treelite.gtil
import treelite.sklearn

from app.errors import ModelFailed
from app.pipelines.base import RawOutput
from app.runtimes.folding import NotFoldable, kind_of
from app.runtimes.heads import Head, answer_values, respond_sigmoid, respond_softmax
from app.runtimes.sklearn import SklearnRuntime

_FORESTS = frozenset({"RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor"})
_BOOSTED = frozenset({"GradientBoostingClassifier", "GradientBoostingRegressor"})
_HISTOGRAMS = frozenset({"HistGradientBoostingClassifier", "HistGradientBoostingRegressor"})
_SINGLE = frozenset({"DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor"})

Answer = Callable[[Any], RawOutput]


class TreesRuntime:
    """The reference's transformers, then trees in another form; one thread, as everything here."""

    def __init__(self, name: str, reference: SklearnRuntime, walk: Callable[[Any], Any], answer: Answer) -> None:
        self.name = name
        self.steady = reference.steady  # its transformers may be somebody's code
        self._transform = reference.transform
        self._walk = walk
        self._answer = answer
        final = reference.final
        # All but histograms cast to float before they compare, which decides at a threshold.
        self._dtype = np.float64 if kind_of(final) in _HISTOGRAMS else np.float32
        self._columns = final.n_features_in_
        self._may_miss = _takes_missing(final)

    def predict(self, inputs: Any, rows: int) -> RawOutput:
        """Answer for `rows` rows. Raises ModelFailed for what scikit-learn refuses."""
        features = inputs if self._transform is None else self._transform.transform(inputs)
        with np.errstate(over="ignore"):  # what is too large for a float becomes infinite, and is refused below
            data = np.ascontiguousarray(features, dtype=self._dtype)
        if data.shape != (rows, self._columns):
            raise ModelFailed("the model answered another number of rows than it was asked")
        if not np.isfinite(data).all() and not (self._may_miss and not np.isinf(data).any()):
            raise ModelFailed("the model was asked about a number that is not finite")
        return self._answer(self._walk(data))


def build_trees(reference: SklearnRuntime) -> TreesRuntime:
    """Raises NotFoldable for what is no tree, and for trees of a kind that cannot be carried over."""
    final = reference.final
    kind = kind_of(final)
    if kind in _SINGLE:
        return _single_tree(reference)
    if kind not in _FORESTS | _BOOSTED | _HISTOGRAMS:
        raise NotFoldable(f"{type(final).__name__} has no trees")
    if getattr(final, "n_outputs_", 1) != 1:
        raise NotFoldable("it answers several outputs for a row")
    try:
        model = treelite.sklearn.import_model(final)
    except (NotImplementedError, treelite.TreeliteError) as error:
        raise NotFoldable(f"treelite does not take it: {str(error).splitlines()[-1]}"[:200]) from None
    # Their own softmax computes in floats: the scores are taken, and our own follows.
    margins = kind in _BOOSTED | _HISTOGRAMS and not reference.regression

    def walk(data: Any) -> Any:
        return treelite.gtil.predict(model, data, nthread=1, pred_margin=margins)[:, 0, :]

    return TreesRuntime("treelite", reference, walk, _answer(reference, kind))


def _answer(reference: SklearnRuntime, kind: str) -> Answer:
    if reference.regression:
        return lambda values: answer_values(values[:, 0].tolist())
    if kind in _FORESTS:
        return Head(lambda shares: shares, by_score=False).answer
    if kind in _HISTOGRAMS:
        return _link(reference.final, 1.0).answer
    head = _link(reference.final, 2.0 if reference.final.loss == "exponential" else 1.0)

    def answer(scores: Any) -> RawOutput:
        """Gradient boosting says the second class where the score is 0."""
        raw = head.answer(scores)
        classes = (scores[:, 0] >= 0).astype(int) if scores.shape[1] == 1 else scores.argmax(axis=1)
        return RawOutput(classes=classes, probabilities=raw.probabilities)

    return answer


def _link(final: Any, factor: float) -> Head:
    if len(final.classes_) == 2:  # noqa: PLR2004
        return Head(lambda scores: respond_sigmoid(factor * scores), by_score=False)
    return Head(respond_softmax, by_score=False)


def _single_tree(reference: SklearnRuntime) -> TreesRuntime:
    """Lists of a tree's nodes, walked in Python: a microsecond a row; a call of scikit-learn takes a hundred."""
    tree = reference.final.tree_
    if tree.n_outputs != 1:
        raise NotFoldable("it answers several outputs for a row")
    columns, thresholds = tree.feature.tolist(), tree.threshold.tolist()
    lefts, rights = tree.children_left.tolist(), tree.children_right.tolist()
    missing_left = tree.missing_go_to_left.tolist()
    values = tree.value[:, 0, :]

    def leaf(row: list[float]) -> int:
        node = 0
        while (left := lefts[node]) >= 0:
            value = row[columns[node]]
            goes_left = value <= thresholds[node] or (missing_left[node] and math.isnan(value))
            node = left if goes_left else rights[node]
        return node

    def walk(data: Any) -> Any:
        return values[[leaf(row) for row in data.tolist()]]

    answer = _answer(reference, "RandomForestClassifier")
    return TreesRuntime("folded tree", reference, walk, answer)


def _takes_missing(final: Any) -> bool:
    """Whether scikit-learn answers for a row of nothing but gaps; it depends on how it was fitted."""
    try:
        final.predict(np.full((1, final.n_features_in_), np.nan))
    except ValueError:
        return False
    return True
