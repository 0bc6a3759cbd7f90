"""The few formulas by which answers of two versions are compared; where SciPy has one, it is SciPy's."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

QUANTILES = (0.05, 0.5, 0.95)


def sign_test(worse: int, better: int) -> float:
    """The p-value, two-sided, of so many pairs one way and so many the other, were both ways equally likely.

    For labels it is McNemar's test in its exact form: only the rows count on which just one of the two is right, and
    their number is binomial (Q. McNemar, Psychometrika 12, 1947; exact as in A. Agresti, Categorical Data Analysis,
    section 11.1). For numbers it is the sign test on absolute errors, ties left out (W. J. Conover, Practical
    Nonparametric Statistics, section 3.4).
    """
    pairs = worse + better
    return float(binomtest(worse, pairs).pvalue) if pairs else 1.0


def wilson(right: int, count: int) -> dict[str, Any]:
    """A share with its 95 % score interval (E. B. Wilson, Journal of the American Statistical Association 22, 1927)."""
    if not count:
        return {"rows": 0, "share": None, "low": None, "high": None}
    interval = binomtest(right, count).proportion_ci(method="wilson")
    return {"rows": count, "share": right / count, "low": float(interval.low), "high": float(interval.high)}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and quantiles, interpolated linearly (R. J. Hyndman and Y. Fan, American Statistician 50, 1996, type 7)."""
    if not len(values):
        return {"count": 0, "mean": None, **{_name(q): None for q in QUANTILES}}
    array = np.asarray(values)
    quantiles = np.quantile(array, QUANTILES).tolist()
    return {
        "count": len(array),
        "mean": float(array.mean()),
        **dict(zip(map(_name, QUANTILES), quantiles, strict=True)),
    }


def shift(then: Sequence[float], now: Sequence[float]) -> tuple[float, float] | None:
    """Median and 95th percentile of |now - then|, in standard deviations of `then`; None where that has no meaning."""
    if not len(then):
        return None
    before = np.asarray(then)
    apart, scale = np.abs(np.asarray(now) - before), float(before.std())
    if scale == 0:
        return None if apart.any() else (0.0, 0.0)
    median, high = np.quantile(apart / scale, (0.5, 0.95)).tolist()
    return (median, high) if math.isfinite(high) else None


def _name(quantile: float) -> str:
    return f"p{quantile * 100:.0f}"
