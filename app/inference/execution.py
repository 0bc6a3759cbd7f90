"""Execution: rows through one version of a model, in the thread that calls; what fails, fails alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from app.errors import FieldError
from app.pipelines.base import Prediction, Row

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

log = structlog.get_logger(__name__)

Outcome = Prediction | FieldError

# A model that fails on so many single rows fails on everything; trying each alone would take the lane for minutes.
_MOST_BLAMED = 64
_MODEL_FAILED = FieldError("model_failed", "the model failed on this row")


def answer_together(model: "LoadedModel", rows: Sequence[Row]) -> list[Outcome]:
    """An outcome for each row, by one call of the estimator. Raises whatever that raises.

    The runtime checks that there is an answer for each row, so that no row can get another one's.
    """
    pipeline = model.pipeline
    return list(pipeline.postprocess(model.runtime.predict(pipeline.preprocess(rows), len(rows))))


def answer_apart(model: "LoadedModel", rows: Sequence[Row]) -> list[Outcome]:
    """The same, but rows that make the estimator raise fail alone: each half by itself, down to who is to blame."""
    blamed: list[BaseException] = []
    outcomes = _bisect(model, rows, blamed)
    if blamed:
        log.error("model_failed", model=model.name, version=model.version, rows=_failed(outcomes), exc_info=blamed[0])
    return outcomes


def _bisect(model: "LoadedModel", rows: Sequence[Row], blamed: list[BaseException]) -> list[Outcome]:
    try:
        return answer_together(model, rows)
    except BaseException as error:  # noqa: BLE001 -- an estimator that calls sys.exit must not end the service
        if len(rows) == 1 or len(blamed) >= _MOST_BLAMED:
            blamed.append(error)
            return [_MODEL_FAILED] * len(rows)
    middle = len(rows) // 2
    return [*_bisect(model, rows[:middle], blamed), *_bisect(model, rows[middle:], blamed)]


def _failed(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome is _MODEL_FAILED for outcome in outcomes)
