"""Models of named columns: the estimator takes a matrix, or a table of mixed values, in the manifest's order."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.manifest import Manifest
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
            import pandas as pd  # noqa: PLC0415 -- optional: only models that were fitted on a DataFrame need it

            return pd.DataFrame(values, columns=list(names))
        return np.array(values, dtype=object)
