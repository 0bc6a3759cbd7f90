"""Version 2: any model, any version, with probabilities, and errors row by row."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.access import needs
from app.api.exchange import header
from app.api.hot_route import Call, HotBatchRoute, HotRoute, Question, Reply
from app.api.parsing import BatchBody, parse_batch, parse_one
from app.api.problems import REFUSALS, FieldProblem, field_problem, problems
from app.errors import (
    FieldError,
    InvalidInput,
    MalformedJson,
    ModelFailed,
    NotReady,
    TooManyRows,
    UnsupportedMediaType,
    VersionNotFound,
)
from app.inference.execution import Outcome
from app.inference.service import Answer
from app.inference.traffic import Split
from app.pipelines.base import Row, to_json
from app.pipelines.rows import closed
from app.registry.aliases import CHAMPION

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

_MOST_CELLS = 1_000_000

router = APIRouter(tags=["version 2"])
_one = APIRouter(route_class=HotRoute)
_many = APIRouter(route_class=HotBatchRoute)

Value = bool | int | float | str
Probabilities = Annotated[dict[str, float] | None, Field(description="Of each label; absent where the model has none.")]


class Timing(BaseModel):
    """Where the time went, in milliseconds: in all, and until the model had answered."""

    model_ms: float = Field(examples=[0.61])
    total_ms: float = Field(examples=[0.74])


class PredictionOut(BaseModel):
    """The answer for one row."""

    id: str = Field(description="UUID version 7 of this prediction.")
    model: str
    version: int
    prediction: Value
    probabilities: Probabilities = None
    timing: Timing


class RowOut(BaseModel):
    """One row of a batch that was answered."""

    id: str
    prediction: Value
    probabilities: Probabilities = None


class RowFailedOut(BaseModel):
    """One row of a batch that was not answered, and why."""

    error: FieldProblem


class Counts(BaseModel):
    """How many rows were answered and how many were not."""

    succeeded: int
    failed: int


class BatchOut(BaseModel):
    """The rows of a batch, in the caller's order."""

    model: str
    version: int
    results: list[RowOut | RowFailedOut]
    counts: Counts
    timing: Timing


def predict_body(row: Any) -> Any:
    """`{"inputs": row}`."""
    return closed("PredictIn", inputs=row)


BATCH_BODY = BatchBody(title="BatchIn", member="inputs", item=lambda row: row, row=lambda row: row)

_PROBLEMS = problems(
    MalformedJson, VersionNotFound, TooManyRows, UnsupportedMediaType, InvalidInput, ModelFailed, NotReady, *REFUSALS
)


@_one.post("/v2/predict", response_model=PredictionOut, responses=_PROBLEMS, openapi_extra=needs("predict:{default}"))
@_one.post(
    "/v2/predict/{model}", response_model=PredictionOut, responses=_PROBLEMS, openapi_extra=needs("predict:{model}")
)
def predict(call: Call) -> Question:
    """Predict one row."""
    model, split = _choose(call)
    row = _read_one(call, model)
    if split is not None and (challenger := _challenger(call, split, row)) is not None:
        model, row = challenger, _read_one(call, challenger)
    return Question(model, [row], _tell_one)


def _read_one(call: Call, model: "LoadedModel") -> Any:
    return parse_one(call.content, model.pipeline, predict_body)["inputs"]


def _tell_one(call: Call, answer: Answer) -> Reply:
    outcome, model = answer.outcomes[0], answer.model
    if isinstance(outcome, FieldError):
        raise ModelFailed(outcome.detail)
    identity = {"id": answer.ids[0], "model": model.name, "version": model.version}
    return Reply(to_json({**identity, **_values(outcome), "timing": _timing(call)}))


@_many.post("/v2/batch", response_model=BatchOut, responses=_PROBLEMS, openapi_extra=needs("predict:{default}"))
@_many.post("/v2/batch/{model}", response_model=BatchOut, responses=_PROBLEMS, openapi_extra=needs("predict:{model}"))
def batch(call: Call) -> Question:
    """Predict many rows. A row that does not fit, or on which the model fails, has an error in its place."""
    model, split = _choose(call)
    if split is not None:
        model = _challenger(call, split, {}) or model
    rows = parse_batch(call.content, model.pipeline, BATCH_BODY, call.services.settings.bounds.max_batch_rows)
    _bound_answer(len(rows), model)
    call.charge(len(rows))
    return Question(model, rows, _tell_many)


def _bound_answer(rows: int, model: "LoadedModel") -> None:
    """A model of many labels answers a probability for each, for every row."""
    labels = len(model.manifest.outputs.labels) if model.manifest.outputs.probabilities else 1
    if rows * labels > _MOST_CELLS:
        most = _MOST_CELLS // labels
        raise TooManyRows(f"{model.name} has {labels} labels; one request may carry at most {most} rows", limit=most)


def _tell_many(call: Call, answer: Answer) -> Reply:
    model = answer.model
    document = {
        "model": model.name,
        "version": model.version,
        "results": [_result(i, outcome) for i, outcome in zip(answer.ids, answer.outcomes, strict=True)],
        "counts": {"succeeded": len(answer.outcomes) - answer.failed, "failed": answer.failed},
        "timing": _timing(call),
    }
    return Reply(to_json(document))


def _name(call: Call) -> str:
    name: str = call.scope["path_params"].get("model") or call.services.settings.models.default_model
    return name


def _choose(call: Call) -> "tuple[LoadedModel, Split | None]":
    """The version that `?version=` names; without it the champion, and whom else the caller may get."""
    name, wanted = _name(call), call.parameter("version")
    predictions = call.services.predictions
    if wanted is None:
        return predictions.choose(name, CHAMPION), predictions.traffic.split(name)
    return predictions.choose(name, wanted), None  # empty is a version that does not exist


def _challenger(call: Call, split: Split, row: Row) -> "LoadedModel | None":
    """The challenger where the key of the request is its; None: the champion answers.

    A batch is answered by one version as a whole, so a field of its rows is no key, and the champion has it.
    """
    key: bytes | None = None
    if split.header is not None:
        key = header(call.scope, split.header)
    elif split.field is not None:
        if call.terms.bulk:
            return None
        value = row.get(split.field)
        key = None if value is None else to_json(value)
    mine = split.takes(key or call.terms.origin.principal.encode())
    return call.services.predictions.traffic.challenger(_name(call)) if mine else None


def _values(outcome: Outcome) -> dict[str, Any]:
    """The members that say what was predicted."""
    if isinstance(outcome, FieldError):
        return {"error": field_problem(replace(outcome, row=None))}  # its place says which row it is
    if outcome.probabilities is None:
        return {"prediction": outcome.value}
    return {"prediction": outcome.value, "probabilities": outcome.probabilities}


def _result(identifier: str, outcome: Outcome) -> dict[str, Any]:
    values = _values(outcome)
    return values if "error" in values else {"id": identifier, **values}


def _timing(call: Call) -> dict[str, float]:
    now = time.perf_counter()
    return {"model_ms": round((now - call.asked) * 1000, 3), "total_ms": round((now - call.terms.started) * 1000, 3)}


router.include_router(_one)
router.include_router(_many)
