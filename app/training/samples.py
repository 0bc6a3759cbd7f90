"""Which rows stand for all: a sample to compare answers on, and the golden rows. No chance is involved."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.manifest import GoldenRow, InputField
from app.pipelines.base import Prediction
from app.training.tables import TrainingTable

GOLDEN_ROWS = 10
# A golden row nearer than this to another label could change sides by rounding on another machine.
_LEAST_MARGIN = 0.01


def spread(y: Sequence[Any], most: int, *, regression: bool) -> list[int]:
    """At most `most` positions (a few more for many labels) that cover every label, or the whole range of values."""
    order = sorted(range(len(y)), key=lambda i: float(y[i]) if regression else str(y[i]))
    if len(order) <= most:
        return sorted(order)
    chosen = {order[i] for i in _even(len(order), most)}
    if not regression:
        chosen |= set({str(y[i]): i for i in reversed(order)}.values())
    return sorted(chosen)


def golden_rows(table: TrainingTable, positions: Sequence[int], answers: Sequence[Prediction]) -> tuple[GoldenRow, ...]:
    """About ten of the rows at `positions`, with their answers.

    Every label that is answered with some certainty, a missing value of each field that may miss, the shortest and the
    longest text; or, for a regression, the whole range of answers.
    """
    steady = [i for i, answer in enumerate(answers) if _is_steady(answer)] or list(range(len(answers)))
    chosen = dict.fromkeys(_extremes(table, positions, steady))
    groups = _by_answer(answers, steady)
    share = max(1, (GOLDEN_ROWS - len(chosen)) // len(groups))
    for group in groups:
        chosen |= dict.fromkeys(group[i] for i in _even(len(group), share))
    return tuple(
        GoldenRow(inputs=table.row(positions[i]), prediction=answers[i].value, probabilities=answers[i].probabilities)
        for i in sorted(chosen)
    )


def _is_steady(answer: Prediction) -> bool:
    if answer.probabilities is None:
        return True
    *_, second, first = sorted([0.0, *answer.probabilities.values()])
    return first - second >= _LEAST_MARGIN


def _by_answer(answers: Sequence[Prediction], steady: Sequence[int]) -> list[list[int]]:
    """The rows of each label; for a regression one group, in the order of the answers."""
    if isinstance(answers[0].value, float):
        return [sorted(steady, key=lambda i: float(answers[i].value))]
    groups: dict[Any, list[int]] = {}
    for i in steady:
        groups.setdefault(answers[i].value, []).append(i)
    return [groups[value] for value in sorted(groups, key=str)]


def _extremes(table: TrainingTable, positions: Sequence[int], steady: Sequence[int]) -> list[int]:
    return [i for field in table.fields for i in _extremes_of(field, table.columns[field.name], positions, steady)]


def _extremes_of(
    field: InputField, column: Sequence[Any], positions: Sequence[int], steady: Sequence[int]
) -> list[int]:
    missing = [i for i in steady if column[positions[i]] is None][:1]
    if field.dtype != "text":
        return missing
    by_length = sorted((i for i in steady if column[positions[i]] is not None), key=lambda i: len(column[positions[i]]))
    return [*missing, *by_length[:1], *by_length[-1:]]


def _even(count: int, most: int) -> list[int]:
    """At most `most` positions from 0 to `count` - 1, both ends included."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))
