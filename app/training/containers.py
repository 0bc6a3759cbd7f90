"""What an estimator takes: found by asking it, with each container in turn, for the answers that it gave its maker.

A plain array is preferred, since a DataFrame costs a dependency on pandas and most of a millisecond for each call.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from unicodedata import normalize

import numpy as np

from app.errors import FieldError, PublishRefused, VersionRefused
from app.manifest import Container, InputField, Manifest
from app.pipelines.base import RawOutput, Row
from app.registry.artefact import read_estimator
from app.registry.loader import LoadedModel, assemble
from app.registry.trust import Trust
from app.runtimes.sklearn import SklearnRuntime
from app.training.tables import TrainingTable, is_frame

# Absolute, and relative to the number: what two orders of the same sums may differ by.
_TOLERANCE = 1e-6
# So many rows are also asked one at a time, since a column of one row may have another type than one of many.
_SINGLE_ROWS = 10


def candidates(fields: Sequence[InputField]) -> tuple[Container, ...]:
    """The containers that could hold such rows, the cheapest first."""
    if len(fields) == 1 and fields[0].dtype == "text":
        return ("texts",)
    frame: tuple[Container, ...] = ("frame",) if find_spec("pandas") else ()
    return ("matrix", "objects", *frame) if all(map(_is_numeric, fields)) else ("objects", *frame)


@dataclass(frozen=True)
class Reference:
    """What the estimator answers its maker: its classes, and answers for some rows where they can be had."""

    classes: Sequence[Any]
    answers: RawOutput | None


def fitting_model(draft: Manifest, raw: bytes, trust: Trust, rows: Sequence[Row], reference: Reference) -> LoadedModel:
    """The reloaded estimator in the first container in which it answers `rows` as in `reference`.

    Raises PublishRefused with what happened in each.
    """
    reasons = []
    for container in candidates(draft.fields):
        artefact = draft.artefact.model_copy(update={"container": container})
        try:
            estimator = read_estimator(raw, draft.artefact.file, trust)
            model = assemble(draft.model_copy(update={"artefact": artefact}), estimator, 0.0)
        except VersionRefused as error:
            raise PublishRefused(error.refusal.detail) from None
        reason = _difference(model, rows, reference)
        if reason is None:
            return model
        reasons.append(f"{container}: {reason}")
    raise PublishRefused("the estimator does not answer when it is served; " + "; ".join(reasons))


def reference_for(runtime: SklearnRuntime, X: Any, positions: Sequence[int]) -> Reference:
    """The answers for some rows of X as they are; none for dicts, which no estimator was fitted on.

    Raises PublishRefused when the estimator cannot answer.
    """
    if isinstance(X, Sequence) and isinstance(X[0], Mapping):
        return Reference(runtime.classes, None)
    try:
        taken = _taken(X, positions)
        answer = runtime.predict(taken, len(positions))
        _check_own_labels(runtime, taken, answer)
        return Reference(runtime.classes, answer)
    except PublishRefused:
        raise
    except Exception as error:  # an estimator may raise anything
        raise PublishRefused(f"the estimator cannot answer for X: {type(error).__name__}: {error}") from error


def _check_own_labels(runtime: SklearnRuntime, taken: Any, answer: RawOutput) -> None:
    """The runtime may derive a label from probabilities; `predict` itself has the last word on what it is."""
    if answer.classes is None:
        return
    own = np.asarray(runtime.estimator.predict(taken))
    if not (np.asarray(runtime.classes)[answer.classes] == own).all():
        raise PublishRefused("the estimator's labels are not those of its largest probabilities: please report this")


def _taken(X: Any, positions: Sequence[int]) -> Any:
    if is_frame(X):
        return X.iloc[list(positions)]
    if isinstance(X, np.ndarray):
        return X[list(positions)]
    taken = [X[i] for i in positions]
    # As the text pipeline does: an estimator that was fitted on decomposed letters is served composed ones.
    return [normalize("NFC", text) for text in taken] if isinstance(taken[0], str) else taken


def _is_numeric(field: InputField) -> bool:
    return field.dtype in {"float", "integer", "boolean"} or (
        field.dtype == "category" and not any(isinstance(value, str) for value in field.categories or ())
    )


def _difference(model: LoadedModel, rows: Sequence[Row], reference: Reference) -> str | None:
    """Why this container will not do, or None when it will."""
    with warnings.catch_warnings():
        # scikit-learn would write this with each call; the estimator wants columns with names, so a DataFrame.
        warnings.filterwarnings("error", message="X (does not have valid|has) feature names")
        try:
            batch = model.reference.predict(model.pipeline.preprocess(rows), len(rows))
            singles = [model.reference.predict(model.pipeline.preprocess([row]), 1) for row in rows[:_SINGLE_ROWS]]
        except Exception as error:  # noqa: BLE001 -- an estimator may raise anything
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    same_answers = reference.answers is None or _same(batch, reference.answers)
    if not same_answers or model.reference.classes != reference.classes:
        return "the answers differ from the estimator's own"
    if not all(_same(single, _one(batch, i)) for i, single in enumerate(singles)):
        return "a row alone has another answer than in a batch"
    return None


def _one(output: RawOutput, position: int) -> RawOutput:
    rows = slice(position, position + 1)
    return RawOutput(
        *(None if part is None else part[rows] for part in (output.classes, output.probabilities, output.values))
    )


def _same(one: RawOutput, other: RawOutput) -> bool:
    pairs = ((one.probabilities, other.probabilities), (one.values, other.values))
    same = one.classes is None or bool((one.classes == other.classes).all())
    return same and all(a is None or np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE) for a, b in pairs)


def valid_positions(pipeline: Any, table: TrainingTable, positions: Sequence[int]) -> list[int]:
    """The rows among `positions` that a caller may send. Raises PublishRefused when there is none."""
    checked = pipeline.validate([table.row(i) for i in positions])
    valid = [i for i, row in zip(positions, checked, strict=True) if not isinstance(row, FieldError)]
    if not valid:
        raise PublishRefused(f"no row of X is a valid input: {checked[0].field or 'the row'} {checked[0].detail}")
    return valid
