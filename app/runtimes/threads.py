"""One thread means one thread: what numeric libraries would otherwise start for each call.

Measured: a forest with `n_jobs=2` needs 11.9 ms for a row and 2.3 ms without; BLAS and OpenMP take every core for each
process, whatever else runs. A service gets its parallelism from requests, so each call stays on its own thread.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from threadpoolctl import threadpool_limits

_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), np.int32, np.int64, np.float32, np.float64})


def bound_numeric_threads() -> None:
    """Limit BLAS for the process, and OpenMP for the thread that calls this; for good, hence nothing to undo."""
    threadpool_limits(limits=1)


def neutralise_jobs(estimator: BaseEstimator) -> int:
    """Set `n_jobs` to None, and `verbose` to 0, in every estimator inside; returns how many asked for more jobs."""
    count = 0
    for inner in walk_estimators(estimator):
        if getattr(inner, "verbose", 0):
            inner.verbose = 0
        if getattr(inner, "n_jobs", None) not in (None, 1):
            inner.n_jobs = None
            count += 1
    return count


def walk_estimators(root: Any) -> Iterator[BaseEstimator]:
    """Every estimator in an estimator: parameters and fitted parts, in lists, dicts and object arrays, once each."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        if isinstance(value, BaseEstimator):
            seen.add(id(value))
            yield value
            stack.extend(_complex(vars(value).values()))
        elif isinstance(value, list | tuple | set):
            seen.add(id(value))
            stack.extend(_complex(value))
        elif isinstance(value, dict):
            seen.add(id(value))
            stack.extend(_complex(value.values()))
        elif isinstance(value, np.ndarray) and value.dtype == object:
            seen.add(id(value))
            stack.extend(_complex(value.ravel()))
        elif hasattr(value, "calibrators") and hasattr(value, "estimator"):  # scikit-learn's _CalibratedClassifier
            seen.add(id(value))
            stack.append(value.estimator)


def _complex(values: Iterable[Any]) -> list[Any]:
    """What may hold an estimator: a vocabulary has tens of thousands of numbers, which are not worth a second look."""
    return [value for value in values if type(value) not in _PLAIN]
