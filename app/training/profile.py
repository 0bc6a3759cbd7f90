"""How inputs and answers were distributed when a version was made: the reference that drift is measured against."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from app.manifest import CategoryProfile, FieldProfile, InputField, NumberProfile

# Deciles say too little about the ends, where drift begins; more bins than this and small samples fill them unevenly.
BINS = 15


def field_profile(field: InputField, values: Sequence[Any]) -> FieldProfile:
    """The profile of one input over the training rows; None is a missing value, and a text counts by its length."""
    match field.dtype:
        case "float" | "integer":
            return number_profile(values)
        case "text":
            return number_profile([None if value is None else len(value) for value in values])
        case "boolean" | "category":
            return category_profile(values)


def number_profile(values: Iterable[float | None], bins: int = BINS) -> NumberProfile:
    """At most `bins` bins of about equally many values each.

    The edges are quantiles, so values that occur often share a bin; the last edge lies just above the largest value,
    since bins are half-open.
    """
    given = list(values)
    numbers = np.asarray([value for value in given if value is not None], dtype=np.float64)
    missing = len(given) - numbers.size
    if not numbers.size:
        return NumberProfile(count=0, missing=missing, mean=0.0, std=0.0, edges=(), counts=())
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, bins + 1)))
    end = np.nextafter(numbers.max(), np.inf)
    edges = np.append(edges[:-1], end) if edges.size > 1 else np.asarray([edges[0], end])
    counts, _ = np.histogram(numbers, edges)
    return NumberProfile(
        count=int(numbers.size),
        missing=missing,
        mean=float(numbers.mean()),
        std=float(numbers.std()),
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )


def category_profile(values: Iterable[Any]) -> CategoryProfile:
    """How often each value occurs, by the text that it has in a probability's key."""
    given = list(values)
    present = [str(value) for value in given if value is not None]
    return CategoryProfile(
        count=len(present), missing=len(given) - len(present), counts=dict(sorted(Counter(present).items()))
    )
