"""What a caller trains on, in whatever form it comes, as named columns of JSON values with a field for each.

Taken: a list of texts, a matrix, a list of dicts, a pandas DataFrame. Everything after this module sees one form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.errors import PublishRefused
from app.manifest import Dtype, InputField
from app.training.fields import Column, converted, dtype_of, field_of

# numpy's letter for a kind of data → ours; strings and objects are decided by their values.
_KINDS: Mapping[str, Dtype] = {"b": "boolean", "i": "integer", "u": "integer", "f": "float"}
# What X says about the dtypes of some of its columns.
_Hints = dict[str, Dtype]


@dataclass(frozen=True)
class TrainingTable:
    """The fields in order, and a column of JSON values for each; None is a missing value."""

    fields: tuple[InputField, ...]
    columns: Mapping[str, Column]

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.columns.values())))

    def row(self, index: int) -> dict[str, Any]:
        """One row as a caller may send it; what is missing is null."""
        return {name: column[index] for name, column in self.columns.items()}


def as_table(X: Any, given: Sequence[InputField] = (), field_names: Sequence[str] = ()) -> TrainingTable:
    """`X` as a table, with the fields inferred from it.

    What a `given` field sets replaces what is inferred for the column of its name. Columns without names of their own
    take `field_names`, or else the names of `given`. Raises PublishRefused.
    """
    if not (X.shape[0] if hasattr(X, "shape") else len(X)):
        raise PublishRefused("X has no rows")
    columns, hints = _columns(X, tuple(field_names) or tuple(field.name for field in given))
    by_name = {field.name: field for field in given}
    if unknown := by_name.keys() - columns.keys():
        raise PublishRefused(f"X has no column for the field {min(unknown)}")
    fields = []
    for name, column in columns.items():
        wanted = by_name.get(name)
        dtype = wanted.dtype if wanted else hints.get(name) or dtype_of(name, column)
        columns[name] = converted(name, column, dtype)
        fields.append(field_of(name, columns[name], dtype, wanted))
    return TrainingTable(tuple(fields), columns)


def is_frame(X: Any) -> bool:
    """Whether `X` is a pandas DataFrame, without importing pandas."""
    return hasattr(X, "columns") and hasattr(X, "dtypes")


def _columns(X: Any, names: tuple[str, ...]) -> tuple[dict[str, Column], _Hints]:
    if is_frame(X):
        return _frame_columns(X)
    if hasattr(X, "tocsr"):
        raise PublishRefused("X is sparse: pass what callers will send, and let the pipeline encode it")
    if isinstance(X, Sequence) and isinstance(X[0], Mapping):
        keys = dict.fromkeys(key for row in X for key in row)
        return {str(key): [_or_none(row.get(key)) for row in X] for key in keys}, {}
    array = X if isinstance(X, np.ndarray) else np.asarray(X, dtype=object)
    if array.ndim == 1 and all(isinstance(value, str) for value in array.tolist()):
        name = (*names, "text")[0]
        return {name: array.tolist()}, {name: "text"}
    return _matrix_columns(array, names)


def _matrix_columns(array: Any, names: tuple[str, ...]) -> tuple[dict[str, Column], _Hints]:
    if array.ndim != 2:  # noqa: PLR2004 -- rows and columns
        raise PublishRefused("X must be a list of texts, a matrix, a list of dicts or a DataFrame")
    if len(set(names)) != array.shape[1]:
        raise PublishRefused(f"X has {array.shape[1]} columns without names: pass as many different field_names")
    columns = {name: [_or_none(value) for value in array[:, i].tolist()] for i, name in enumerate(names)}
    kind = _KINDS.get(array.dtype.kind)
    return columns, dict.fromkeys(names, kind) if kind else {}


def _frame_columns(frame: Any) -> tuple[dict[str, Column], _Hints]:
    names = [str(name) for name in frame.columns]
    if len(set(names)) != len(names):
        raise PublishRefused("two columns of X have the same name")
    columns: dict[str, Column] = {}
    hints: _Hints = {}
    for position, name in enumerate(names):
        series = frame.iloc[:, position]
        columns[name] = [_or_none(value) for value in series.astype(object).tolist()]
        kind = "category" if str(series.dtype) == "category" else _KINDS.get(getattr(series.dtype, "kind", ""))
        if kind:
            hints[name] = kind
    return columns, hints


def _or_none(value: Any) -> Any:
    """A Python value; None for None, NaN and pandas' own ways to say missing."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or type(value).__name__ in {"NAType", "NaTType"}:
        return None
    return None if isinstance(value, float) and np.isnan(value) else value
