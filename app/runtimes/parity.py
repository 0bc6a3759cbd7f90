"""Parity: whether a form answers what scikit-learn answers, and by how much its numbers differ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.pipelines.base import RawOutput, Row
from app.runtimes.base import Runtime
from app.runtimes.politeness import breathe

# Two labels whose probabilities, or scores, are closer than this are a tie: which of them is the larger is a matter of
# the order in which scikit-learn happened to add up, and may change with the number of rows in a call.
TIE = 1e-12
_CHUNK = 64
_SINGLES = 48


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is empty for a form that agrees; a difference is that of numbers up to 1, and relative beyond."""

    largest_difference: float
    labels_equal: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """Rows that the reference answers, and what it answers; `gaps` by which its label was chosen, where known."""

    rows: list[Row]
    classes: Any
    numbers: Any
    gaps: Any


Preprocess = Callable[[Sequence[Row]], Any]


def expect(rows: Sequence[Row], preprocess: Preprocess, reference: Runtime, estimator: Any) -> Expected:
    """Ask the reference; rows on which it raises are left out."""
    kept: list[Row] = []
    answers: list[RawOutput] = []
    gaps: list[Any] = []

    def ask(chunk: Sequence[Row]) -> None:
        breathe()
        try:
            inputs = preprocess(chunk)
            answer = reference.predict(inputs, len(chunk))
            gap = _gaps(answer, estimator, inputs)
        except Exception:  # noqa: BLE001 -- an estimator may raise anything; such a row has no answer to agree with
            for row in chunk if len(chunk) > 1 else ():
                ask([row])
        else:
            kept.extend(chunk)
            answers.append(answer)
            gaps.append(gap)

    for start in range(0, len(rows), _CHUNK):
        ask(rows[start : start + _CHUNK])
    classes, numbers = _joined(answers)
    return Expected(kept, classes, numbers, np.concatenate(gaps) if gaps else np.zeros(0))


def compare(form: Runtime, expected: Expected, preprocess: Preprocess, tolerance: float) -> Verdict:
    """All rows in one call, and some alone, since forms may have another way for one row."""
    rows = expected.rows
    verdict = _compared(form.predict(preprocess(rows), len(rows)), expected, np.arange(len(rows)), tolerance)
    singles = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _SINGLES)).astype(int))
    alone = [_answer_alone(form, preprocess, rows[i]) for i in singles]
    other = _compared(RawOutput(*_as_raw(alone)), expected, singles, tolerance)
    return Verdict(
        max(verdict.largest_difference, other.largest_difference),
        verdict.labels_equal and other.labels_equal,
        verdict.reason or other.reason,
    )


def _answer_alone(form: Runtime, preprocess: Preprocess, row: Row) -> RawOutput:
    breathe()
    return form.predict(preprocess([row]), 1)


def _as_raw(answers: Sequence[RawOutput]) -> tuple[Any, Any, Any]:
    classes, numbers = _joined(answers)
    return (None, None, numbers) if classes is None else (classes, numbers, None)


def _joined(answers: Sequence[RawOutput]) -> tuple[Any, Any]:
    """The classes of all answers, and their numbers: probabilities or values."""
    if not answers:
        return np.zeros(0, dtype=int), None
    if answers[0].values is not None:
        return None, np.concatenate([np.asarray(answer.values, dtype=np.float64) for answer in answers])
    classes = np.concatenate([np.asarray(answer.classes) for answer in answers])
    if answers[0].probabilities is None:
        return classes, None
    return classes, np.concatenate([np.asarray(answer.probabilities) for answer in answers])


def _gaps(answer: RawOutput, estimator: Any, inputs: Any) -> Any:
    """By how much the two foremost labels of each row differ."""
    if answer.values is not None:
        return np.full(len(answer.values), np.inf)
    if answer.probabilities is not None:
        return _foremost(np.asarray(answer.probabilities))
    if hasattr(estimator, "decision_function"):
        scores = np.asarray(estimator.decision_function(inputs))
        return np.abs(scores) if scores.ndim == 1 else _foremost(scores)
    return np.full(len(answer.classes), np.inf)


def _foremost(shares: Any) -> Any:
    if shares.shape[1] == 1:
        return np.full(len(shares), np.inf)
    two = np.sort(shares, axis=1)[:, -2:]
    return two[:, 1] - two[:, 0]


def _compared(answer: RawOutput, expected: Expected, places: Any, tolerance: float) -> Verdict:
    classes, numbers = _joined([answer])
    labels = None if expected.classes is None else expected.classes[places]
    wanted = None if expected.numbers is None else expected.numbers[places]
    if not (_alike(classes, labels) and _alike(numbers, wanted)):
        return Verdict(np.inf, labels_equal=False, reason="it answers another kind of output")
    largest, reason = 0.0, ""
    if wanted is not None and len(wanted):
        difference = np.abs(numbers - wanted) / np.maximum(1.0, np.abs(wanted))
        largest = float(difference.max())
        if not largest <= tolerance:  # nor is NaN
            reason = f"a number differs by {largest:.1e}"
    equal = True
    if labels is not None:
        differs = (classes != labels) & ~(expected.gaps[places] < TIE)
        equal = not differs.any()
        reason = f"{differs.sum()} of {len(places)} labels differ" if not equal else reason
    return Verdict(largest, equal, reason)


def _alike(found: Any, wanted: Any) -> bool:
    return wanted is None if found is None else wanted is not None and found.shape == wanted.shape
