"""Heads: what makes an answer of the scores of a linear model, as scikit-learn does, without its checks.

A form computes `scores` of shape (rows, outputs); a classifier of two classes has one output, the score of the second.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from app.errors import ModelFailed
from app.pipelines.base import RawOutput

Positive = Callable[[float], float]
_NOT_FINITE = "the model answered a number that is not finite"


@dataclass(frozen=True, slots=True)
class Head:
    """`respond`: scores → probabilities of shape (rows, classes); None where the estimator has none.

    `by_score`: the label is that of the largest score, not of the largest probability; they differ at ties and where a
    calibrator has turned the order. `positive`: the probability of the second of two classes for one score, and `each`:
    those of one row, in plain Python, which for a row costs a tenth of numpy's.
    """

    respond: Callable[[Any], Any] | None = None
    by_score: bool = True
    positive: Positive | None = None
    each: Callable[[list[float]], list[float]] | None = None

    @property
    def plain(self) -> bool:
        """Whether `answer_one_output` can be asked."""
        return self.positive is not None or self.respond is None

    def answer(self, scores: Any) -> RawOutput:
        """The label of each row, and its probabilities. Raises ModelFailed where a score is not finite."""
        if self.each is not None and len(scores) == 1:
            return self._answer_each(scores[0].tolist())
        if not np.isfinite(scores).all():
            raise ModelFailed(_NOT_FINITE)
        shares = None if self.respond is None else self.respond(scores)
        if not self.by_score and shares is not None:
            classes = shares.argmax(axis=1)
        elif scores.shape[1] == 1:
            classes = (scores[:, 0] > 0).astype(int)
        else:
            classes = scores.argmax(axis=1)
        return RawOutput(classes=classes, probabilities=shares)

    def _answer_each(self, scores: list[float]) -> RawOutput:
        assert self.each is not None  # noqa: S101 -- asked before
        if not all(map(math.isfinite, scores)):
            raise ModelFailed(_NOT_FINITE)
        shares = self.each(scores)
        largest = scores if self.by_score else shares
        return RawOutput(classes=[largest.index(max(largest))], probabilities=[shares])

    def answer_one_output(self, scores: list[float]) -> RawOutput:
        """The same for one score a row, in plain Python; only where there is `positive`, or nothing to respond."""
        positive = self.positive
        if positive is None:
            if not all(map(math.isfinite, scores)):
                raise ModelFailed(_NOT_FINITE)
            return RawOutput(classes=[1 if score > 0 else 0 for score in scores])
        classes, shares = [], []
        by_score = self.by_score
        for score in scores:
            share = positive(score)
            if share != share:  # noqa: PLR0124 -- a call of isnan would cost more than the rest
                raise ModelFailed(_NOT_FINITE)
            shares.append([1.0 - share, share])
            classes.append(1 if (score > 0 if by_score else share > 1.0 - share) else 0)
        return RawOutput(classes=classes, probabilities=shares)


def answer_values(scores: list[float]) -> RawOutput:
    """A regression: the scores are the answers."""
    if not all(map(math.isfinite, scores)):
        raise ModelFailed(_NOT_FINITE)
    return RawOutput(values=scores)


def averaged(members: Sequence[tuple[Head | None, int]]) -> Head | None:
    """One head for the outputs of several, side by side: the mean of their probabilities. None for a regression."""
    heads = [head for head, _ in members if head is not None]
    if len(members) == 1 or not heads:
        return members[0][0]
    ends = np.cumsum([outputs for _, outputs in members]).tolist()
    parts = [
        (head.respond, slice(end - outputs, end))
        for (head, outputs), end in zip(members, ends, strict=True)
        if head is not None and head.respond is not None
    ]

    def respond(scores: Any) -> Any:
        return sum(member(scores[:, columns]) for member, columns in parts) / len(parts)

    return Head(respond, by_score=False)


def sigmoid(score: float) -> float:
    """1 / (1 + exp(-score))."""
    try:
        return 1.0 / (1.0 + math.exp(-score))
    except OverflowError:  # exp(710) is too large for a float, and the share smaller than 1e-308
        return 0.0


def respond_sigmoid(scores: Any) -> Any:
    """Two classes: the sigmoid of the one score. More: that of each score, so scaled that they sum to 1."""
    return _two_columns(expit(scores)) if scores.shape[1] == 1 else _normalised(expit(scores))


def huber(score: float) -> float:
    """(clip(score, -1, 1) + 1) / 2: SGDClassifier with the loss modified_huber."""
    return (min(max(score, -1.0), 1.0) + 1.0) / 2.0


def respond_huber(scores: Any) -> Any:
    """The same for arrays."""
    shares = (np.clip(scores, -1.0, 1.0) + 1.0) / 2.0
    return _two_columns(shares) if scores.shape[1] == 1 else _normalised(shares)


def respond_softmax(scores: Any) -> Any:
    """exp(score), so scaled that they sum to 1; the largest score is subtracted, so that none overflows."""
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def softmax(scores: list[float]) -> list[float]:
    """The same for one row."""
    largest = max(scores)
    shares = [math.exp(score - largest) for score in scores]
    total = sum(shares)
    return [share / total for share in shares]


def _two_columns(shares: Any) -> Any:
    return np.hstack([1.0 - shares, shares])


def _normalised(shares: Any) -> Any:
    """Shares that sum to 1; where all are 0, equal ones."""
    sums = shares.sum(axis=1, keepdims=True)
    return np.divide(shares, sums, out=np.full_like(shares, 1.0 / shares.shape[1]), where=sums != 0)


@dataclass(frozen=True, slots=True)
class Calibrator:
    """One fitted calibrator: of a number in plain Python, and of an array."""

    one: Positive
    many: Callable[[Any], Any]


def platt(slope: float, intercept: float) -> Calibrator:
    """Platt's sigmoid as CalibratedClassifierCV fits it: 1 / (1 + exp(slope · x + intercept))."""
    return Calibrator(lambda x: sigmoid(-(slope * x + intercept)), lambda x: expit(-(slope * x + intercept)))


def isotonic(places: Sequence[float], values: Sequence[float]) -> Calibrator:
    """A step function with lines between its steps, constant beyond both ends."""
    x, y = list(map(float, places)), list(map(float, values))
    x_array, y_array = np.array(x), np.array(y)
    last = len(x) - 1

    def one(value: float) -> float:
        if not value < x[last]:
            return y[last] if value >= x[last] else math.nan
        right = bisect_right(x, value)
        if right == 0:
            return y[0]
        slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
        return slope * (value - x[right - 1]) + y[right - 1]

    return Calibrator(one, lambda value: np.interp(value, x_array, y_array))


def calibrated(inner: Head | None, calibrators: Sequence[Calibrator], positions: Sequence[int], classes: int) -> Head:
    """What a _CalibratedClassifier answers: each output calibrated by itself, then scaled.

    `inner` answers what is calibrated, for an estimator that has probabilities and no decision function; otherwise the
    scores are. `positions[i]` is the class of output i.
    """
    if classes == 2:  # noqa: PLR2004
        return _calibrated_pair(inner, calibrators[0])

    def respond(scores: Any) -> Any:
        base = scores if inner is None or inner.respond is None else inner.respond(scores)
        shares = np.zeros((len(base), classes))
        for output, (position, calibrator) in enumerate(zip(positions, calibrators, strict=True)):
            shares[:, position] = calibrator.many(base[:, output])
        return _capped(_normalised(shares))

    return Head(respond, by_score=False)


def _calibrated_pair(inner: Head | None, calibrator: Calibrator) -> Head:
    one, first = calibrator.one, None if inner is None else inner.positive
    base = None if inner is None else inner.respond

    def respond(scores: Any) -> Any:
        return _two_columns(calibrator.many(scores if base is None else base(scores)[:, 1:]))

    return Head(respond, by_score=False, positive=one if first is None else lambda score: one(first(score)))


def _capped(shares: Any) -> Any:
    """Rounding may take a share beyond 1, by a little."""
    return np.minimum(shares, 1.0)
