"""Folded linear models: scaling, filling gaps and encoding categories become one matrix of weights and one offset.

scores = numbers · weights + offset, plus a vector for each category by look-up. scikit-learn takes 240 µs for a row of
four numbers, nearly all of it for looking at what it was given; this form takes three.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.errors import ModelFailed
from app.pipelines.base import RawOutput
from app.runtimes.folding import Branch, NotFoldable, fold, kind_of, through
from app.runtimes.heads import answer_values, averaged
from app.runtimes.sklearn import SklearnRuntime
from app.runtimes.threads import walk_estimators

# Up to so many rows plain Python makes the answers of scores faster than numpy.
_FEW_ROWS = 16

Vectors = dict[Any, Any]


@dataclass(slots=True, eq=False)
class _Fold:
    """What has been folded so far: for each field its weights, what fills its gaps, and the vectors of categories.

    `fill` is NaN where nothing fills: then a gap makes the score NaN, as scikit-learn would refuse it.
    """

    weights: Any
    offset: Any
    numeric: Any
    fill: Any
    categories: list[tuple[int, Vectors, Any]] = field(default_factory=list)

    def add_numbers(self, columns: Any, weights: Any, fill: Any) -> None:
        if (self.numeric[columns] & ~_same(self.fill[columns], fill)).any():
            raise NotFoldable("two steps fill the gaps of one field differently")
        self.weights[columns] += weights
        self.numeric[columns] = True
        self.fill[columns] = fill


def _same(one: Any, other: Any) -> Any:
    return (one == other) | (np.isnan(one) & np.isnan(other))


def build_linear(reference: SklearnRuntime) -> "FoldedLinear":
    """Raises NotFoldable, with the reason."""
    estimator = reference.estimator
    if any(kind_of(inner).endswith("NB") for inner in walk_estimators(estimator)):
        raise NotFoldable("naive Bayes refuses negative numbers, and weights do not")
    branches = fold(estimator)
    width = estimator.n_features_in_
    folds = [_folded(branch, width) for branch in branches]
    if len(folds) > 1 and any(f.categories or not np.isnan(f.fill).all() or not f.numeric.all() for f in folds):
        raise NotFoldable("an ensemble in which each member fills or encodes by itself")
    return FoldedLinear(folds, branches)


class FoldedLinear:
    """The runtime."""

    name = "folded linear"
    steady = True

    def __init__(self, folds: Sequence[_Fold], branches: Sequence[Branch]) -> None:
        (first, *_) = folds
        columns = np.flatnonzero(first.numeric)
        self._width = len(first.weights)
        self._columns = None if len(columns) == self._width else columns
        self._weights = np.hstack([f.weights for f in folds])[columns]
        self._offset = np.concatenate([f.offset for f in folds])
        fill = first.fill[columns]
        self._fill = None if np.isnan(fill).all() else fill
        self._categories = first.categories
        self._head = averaged([(branch.head, branch.weights.shape[1]) for branch in branches])
        self._plain = self._weights.shape[1] == 1 and (self._head is None or self._head.plain)

    def predict(self, inputs: Any, rows: int) -> RawOutput:
        """Answer for `rows` rows. Raises ModelFailed for a gap that nothing fills, or a category that is unknown."""
        if inputs.shape != (rows, self._width):
            raise ModelFailed("the model answered another number of rows than it was asked")
        numbers = inputs if self._columns is None else inputs[:, self._columns]
        if numbers.dtype != np.float64:
            numbers = numbers.astype(np.float64)
        if self._fill is not None:
            numbers = np.where(np.isnan(numbers), self._fill, numbers)
        scores = numbers @ self._weights + self._offset
        for column, vectors, unknown in self._categories:
            scores += [_vector(vectors, unknown, value) for value in inputs[:, column].tolist()]
        if self._head is None:
            return answer_values(scores[:, 0].tolist())
        if self._plain and rows <= _FEW_ROWS:
            return self._head.answer_one_output(scores[:, 0].tolist())
        return self._head.answer(scores)


def _vector(vectors: Vectors, unknown: Any, value: Any) -> Any:
    found = vectors.get(value if value == value else None)  # noqa: PLR0124 -- NaN stands under None: it equals nothing
    if found is None:
        found = unknown
    if found is None:
        raise ModelFailed("a category is unknown to the model")
    return found


def _folded(branch: Branch, width: int) -> _Fold:
    weights, offset = branch.weights, branch.offset
    outputs = weights.shape[1]
    folded = _Fold(np.zeros((width, outputs)), offset, np.zeros(width, dtype=bool), np.full(width, np.nan))
    steps = branch.steps
    if not steps or kind_of(steps[0]) != "ColumnTransformer":
        _add_block(folded, list(steps), np.arange(width), weights)
        return folded
    for step in reversed(steps[1:]):
        weights, folded.offset = through(step, weights, folded.offset)
    table = steps[0]
    shares = table.transformer_weights or {}
    for name, transformer, columns in table.transformers_:
        place = table.output_indices_[name]
        if not (isinstance(transformer, str) and transformer == "drop") and place.stop > place.start:
            block = weights[place] * shares.get(name, 1.0)
            _add_block(folded, _steps_of(transformer), np.arange(width)[columns], block)
    return folded


def _steps_of(transformer: Any) -> list[Any]:
    if isinstance(transformer, str):  # passthrough
        return []
    if kind_of(transformer) == "Pipeline":
        return [step for _, step in transformer.steps if step not in (None, "passthrough")]
    return [transformer]


def _add_block(folded: _Fold, steps: Sequence[Any], columns: Any, weights: Any) -> None:
    """Carry a block's weights back through its steps to `columns`, and add them to what is folded."""
    offset = np.zeros(weights.shape[1])
    imputer, steps = _split_imputer(steps)
    encoder = steps[0] if steps and kind_of(steps[0]) in _ENCODERS else None
    for step in reversed(steps if encoder is None else steps[1:]):
        weights, offset = through(step, weights, offset)
    folded.offset = folded.offset + offset
    if encoder is not None:
        _add_categories(folded, encoder, imputer, np.atleast_1d(columns), weights)
        return
    if len(np.atleast_1d(columns)) != len(weights):
        raise NotFoldable("a step changes the number of columns")
    fill = np.full(len(weights), np.nan) if imputer is None else np.asarray(imputer.statistics_, dtype=np.float64)
    folded.add_numbers(columns, weights, fill)


def _split_imputer(steps: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    if not steps or kind_of(steps[0]) != "SimpleImputer":
        return None, steps
    imputer = steps[0]
    is_nan = isinstance(imputer.missing_values, float) and np.isnan(imputer.missing_values)
    if not is_nan or imputer.add_indicator:
        raise NotFoldable("its SimpleImputer marks gaps, or takes other values for them")
    if any(value is None or value != value for value in imputer.statistics_.tolist()):  # noqa: PLR0124
        raise NotFoldable("its SimpleImputer leaves out a column that was empty")
    return imputer, steps[1:]


_ENCODERS = frozenset({"OneHotEncoder", "OrdinalEncoder"})


def _add_categories(folded: _Fold, encoder: Any, imputer: Any, columns: Any, weights: Any) -> None:
    if encoder.min_frequency is not None or encoder.max_categories is not None:
        raise NotFoldable(f"its {kind_of(encoder)} puts rare categories together")
    one_hot = kind_of(encoder) == "OneHotEncoder"
    start = 0
    for position, categories in enumerate(encoder.categories_):
        if one_hot:
            drop = encoder.drop_idx_[position] if encoder.drop_idx_ is not None else None
            vectors, unknown, start = _one_hot(encoder, categories.tolist(), drop, weights, start)
        else:
            vectors, unknown = _ordinal(encoder, categories.tolist(), weights[position])
        if imputer is not None:
            vectors = {**vectors, None: vectors.get(imputer.statistics_[position], unknown)}
        folded.categories.append((int(columns[position]), vectors, unknown))


def _one_hot(encoder: Any, categories: Sequence[Any], drop: Any, weights: Any, start: int) -> tuple[Vectors, Any, int]:
    """The vector of each category, that of an unknown one, and where the next field's weights begin."""
    if encoder.handle_unknown not in ("error", "ignore"):
        raise NotFoldable(f"its OneHotEncoder handles unknown categories by {encoder.handle_unknown}")
    nothing = np.zeros(weights.shape[1])
    vectors: Vectors = {}
    for number, category in enumerate(categories):
        if number == drop:
            vectors[_key(category)] = nothing
        else:
            vectors[_key(category)] = weights[start]
            start += 1
    return vectors, nothing if encoder.handle_unknown == "ignore" else None, start


def _ordinal(encoder: Any, categories: Sequence[Any], weights: Any) -> tuple[Vectors, Any]:
    vectors: Vectors = {_key(category): number * weights for number, category in enumerate(categories)}
    if None in vectors:
        vectors[None] = encoder.encoded_missing_value * weights
    unknown = encoder.unknown_value * weights if encoder.handle_unknown == "use_encoded_value" else None
    return vectors, unknown


def _key(category: Any) -> Any:
    return category if category == category else None  # noqa: PLR0124 -- as above
