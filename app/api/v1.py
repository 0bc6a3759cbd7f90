"""Version 1: the frozen first contract. One text in, one sentiment out, by the version that the alias `v1` names.

Nothing here changes any more: what a caller of `/predict` wrote against the first release goes on working.
"""

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.access import needs
from app.api.hot_route import Call, HotBatchRoute, HotRoute, Question, Reply
from app.api.parsing import BatchBody, parse_batch, parse_one
from app.api.problems import REFUSALS, problems
from app.errors import (
    FieldError,
    InvalidInput,
    MalformedJson,
    ModelFailed,
    ModelNotServing,
    NotReady,
    TooManyRows,
    UnsupportedMediaType,
)
from app.inference.service import Answer
from app.pipelines.base import to_json

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

MODEL = "sentiment"
ALIAS = "v1"
FIELD = "text"

_PROBLEMS = problems(MalformedJson, TooManyRows, UnsupportedMediaType, InvalidInput, ModelFailed, NotReady, *REFUSALS)

_NEEDS = needs(f"predict:{MODEL}")

router = APIRouter(tags=["version 1"])
_one = APIRouter(route_class=HotRoute)
_many = APIRouter(route_class=HotBatchRoute)


class SentimentOut(BaseModel):
    """The sentiment of one text."""

    sentiment: str = Field(examples=["positive"])


class SentimentsOut(BaseModel):
    """The sentiments of several texts, in their order."""

    results: list[str] = Field(examples=[["positive", "negative"]])


def predict_body(row: Any) -> Any:
    """The body of a predict request is a row of the model."""
    return row


BATCH_BODY = BatchBody(
    title="SentimentsIn",
    member="texts",
    item=lambda row: row.__annotations__[FIELD],
    row=lambda text: {FIELD: text},
)


@_one.post("/predict", response_model=SentimentOut, responses=_PROBLEMS, openapi_extra=_NEEDS)
@_one.post("/v1/predict", response_model=SentimentOut, responses=_PROBLEMS, openapi_extra=_NEEDS)
def predict(call: Call) -> Question:
    """Tell the sentiment of one text.

    The headers `X-Prediction-Id` and `X-Model-Version` say under which id, and by which version.
    """
    call.no_parameters()
    model = _choose(call)
    row = parse_one(call.content, model.pipeline, predict_body)
    return Question(model, [row], _tell_one)


def _tell_one(_: Call, answer: Answer) -> Reply:
    outcome = answer.outcomes[0]
    if isinstance(outcome, FieldError):
        raise ModelFailed(outcome.detail)
    return Reply(to_json({"sentiment": outcome.value}), _headers(answer))


@_many.post("/batch-predict", response_model=SentimentsOut, responses=_PROBLEMS, openapi_extra=_NEEDS)
@_many.post("/v1/batch", response_model=SentimentsOut, responses=_PROBLEMS, openapi_extra=_NEEDS)
def batch(call: Call) -> Question:
    """Tell the sentiments of several texts.

    One bad text refuses the whole batch, and `bad_rows` names every bad one by its position. `X-Prediction-Id` is the
    id of the first row; those of the others count up from it.
    """
    call.no_parameters()
    model = _choose(call)
    rows = parse_batch(call.content, model.pipeline, BATCH_BODY, call.services.settings.bounds.max_batch_rows)
    call.charge(len(rows))
    bad = [row for row in rows if isinstance(row, FieldError)]
    if bad:
        raise InvalidInput(f"{len(bad)} of {len(rows)} rows do not fit", errors=bad, bad_rows=[row.row for row in bad])
    return Question(model, rows, _tell_many)


def _tell_many(_: Call, answer: Answer) -> Reply:
    failed = [outcome for outcome in answer.outcomes if isinstance(outcome, FieldError)]
    if failed:
        detail = f"the model failed on {len(failed)} of {len(answer.outcomes)} rows"
        raise ModelFailed(detail, errors=failed, bad_rows=[outcome.row for outcome in failed])
    results = [outcome.value for outcome in answer.outcomes if not isinstance(outcome, FieldError)]
    return Reply(to_json({"results": results}), _headers(answer))


def _choose(call: Call) -> "LoadedModel":
    model = call.services.predictions.choose(MODEL, ALIAS)
    if model.pipeline.names != (FIELD,):
        raise ModelNotServing(f"the version that {ALIAS} names does not take one text")
    return model


def _headers(answer: Answer) -> list[tuple[bytes, bytes]]:
    return [(b"x-prediction-id", answer.ids[0].encode()), (b"x-model-version", b"%d" % answer.model.version)]


router.include_router(_one)
router.include_router(_many)
