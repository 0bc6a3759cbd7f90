"""Models of named columns: the estimator takes a matrix, or a table of mixed values, in the manifest's order."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.manifest import InputField, Manifest
from app.pipelines.base import Pipeline, Row


class TabularPipeline(Pipeline):
    """Named values in any order → columns in the order of training; what is missing becomes NaN."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._container = manifest.artefact.container
        self._may_miss = any(field.missing == "allow" for field in manifest.fields)

    def preprocess(self, rows: Sequence[Row]) -> Any:
        """An array of shape (rows, fields): float64 for `matrix`, objects for `objects`; or a DataFrame."""
        names = self.names
        if self._may_miss:
            values = [[np.nan if (v := row.get(name)) is None else v for name in names] for row in rows]
        else:
            values = [[row[name] for name in names] for row in rows]
        if self._container == "matrix":
            return np.array(values, dtype=np.float64)
        if self._container == "frame":
            return _frame(values, self.manifest.fields)
        return np.array(values, dtype=object)


def _frame(values: list[list[Any]], fields: Sequence[InputField]) -> Any:
    """A DataFrame whose columns have the types of the fields, not those that the values at hand suggest.

    Otherwise a column would change its type with the batch: one of integers by a missing value, one of categories by
    which of them occur.
    """
    import pandas as pd  # noqa: PLC0415 -- optional: only models that cannot do with an array need it

    columns = zip(*values, strict=True)
    return pd.DataFrame(
        {
            field.name: pd.Series(column, dtype=_frame_dtype(field))
            for field, column in zip(fields, columns, strict=True)
        }
    )


def _frame_dtype(field: InputField) -> Any:
    import pandas as pd  # noqa: PLC0415 -- as above

    if field.dtype == "category":
        return pd.CategoricalDtype(list(field.categories or ()))
    may_miss = field.missing == "allow"
    match field.dtype:
        case "float":
            return "float64"
        case "integer":
            return "float64" if may_miss else "int64"
        case "boolean":
            return "object" if may_miss else "bool"
        case _:
            return "object"
