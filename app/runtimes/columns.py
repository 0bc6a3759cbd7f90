"""Serve from arrays what was fitted on a DataFrame: without pandas, and a millisecond a call faster."""

from collections.abc import Sequence
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer

from app.runtimes.threads import walk_estimators


def forget_column_names(estimator: BaseEstimator) -> None:
    """Let every estimator inside take arrays: columns by their positions, and no warning that they have no names.

    The order of the columns is the manifest's, so the names check nothing that is not checked already.
    """
    for inner in list(walk_estimators(estimator)):
        names = vars(inner).pop("feature_names_in_", None)
        if names is not None and isinstance(inner, ColumnTransformer):
            inner.transformers_ = [
                (name, transformer, _positions(columns, list(names)))
                for name, transformer, columns in inner.transformers_
            ]


def _positions(columns: Any, names: Sequence[str]) -> Any:
    """A ColumnTransformer's specification of columns with positions for names; anything else as it is."""
    if isinstance(columns, str):
        return names.index(columns)
    if isinstance(columns, slice) and (isinstance(columns.start, str) or isinstance(columns.stop, str)):
        start = None if columns.start is None else names.index(columns.start)
        stop = None if columns.stop is None else names.index(columns.stop) + 1  # a slice of names has its end in it
        return slice(start, stop, columns.step)
    if isinstance(columns, slice) or not all(isinstance(column, str) for column in columns):
        return columns
    return [names.index(column) for column in columns]
