"""Golden rows: inputs whose answers were recorded at publication, and must come out again."""

import math
from collections.abc import Sequence

from app.errors import FieldError, PresageError, VersionRefused
from app.manifest import GoldenRow, Manifest
from app.pipelines import Pipeline
from app.pipelines.base import Prediction, Row
from app.runtimes.base import Runtime


def check_golden_rows(manifest: Manifest, pipeline: Pipeline, runtime: Runtime) -> None:
    """Raises VersionRefused with the first row that is refused or comes out otherwise, counted from 0."""
    golden = manifest.golden
    rows: list[Row] = []
    for position, row in enumerate(pipeline.validate([row.inputs for row in golden.rows])):
        if isinstance(row, FieldError):
            raise VersionRefused("golden_mismatch", f"golden row {position} is invalid: {row.field or ''} {row.detail}")
        rows.append(row)
    answers = _answers(pipeline, runtime, rows)
    for position, (expected, answer) in enumerate(zip(golden.rows, answers, strict=True)):
        if not _agrees(expected, answer, golden.tolerance):
            raise VersionRefused("golden_mismatch", f"golden row {position} does not come out as recorded")


def _answers(pipeline: Pipeline, runtime: Runtime, rows: Sequence[Row]) -> list[Prediction]:
    try:
        return pipeline.postprocess(runtime.predict(pipeline.preprocess(rows), len(rows)))
    except PresageError as error:
        raise VersionRefused("golden_mismatch", error.detail) from None
    except Exception as error:  # an estimator may raise anything
        raise VersionRefused("golden_mismatch", f"the estimator raised {type(error).__name__}: {error}") from error


def _agrees(expected: GoldenRow, answer: Prediction, tolerance: float) -> bool:
    if isinstance(expected.prediction, float) and isinstance(answer.value, float):
        same = _close(expected.prediction, answer.value, tolerance)
    else:
        same = type(expected.prediction) is type(answer.value) and expected.prediction == answer.value
    if not same or expected.probabilities is None or answer.probabilities is None:
        return same and expected.probabilities == answer.probabilities
    return expected.probabilities.keys() == answer.probabilities.keys() and all(
        _close(share, answer.probabilities[label], tolerance) for label, share in expected.probabilities.items()
    )


def _close(one: float, other: float, tolerance: float) -> bool:
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
