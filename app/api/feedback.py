"""Feedback: what turned out to be true of predictions, one or many; late, repeated and corrected, as it comes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, Field, Strict, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from app.api.access import needs
from app.api.deps import AdmissionDep, ServicesDep
from app.api.instants import StoredInstant
from app.api.json_route import BulkJsonRoute
from app.api.offload import on_thread
from app.api.predictions import flush, readable, still_underway
from app.api.problems import REFUSALS, FieldProblem, field_problem, problems
from app.api.v2 import Counts
from app.auth.principal import Principal
from app.errors import (
    FieldError,
    InvalidInput,
    MalformedJson,
    PredictionNotFound,
    StorageUnavailable,
    TooManyRows,
    UnsupportedMediaType,
    VersionRefused,
)
from app.manifest import Label, Manifest
from app.pipelines.base import to_json
from app.pipelines.rows import STRICT, field_errors
from app.registry.registry import ModelRegistry
from app.storage import queries
from app.storage.feedback import Outcome, Statement, newest, put
from app.storage.ids import may_exist
from app.wiring import Services

router = APIRouter(route_class=BulkJsonRoute, tags=["prediction log"])

_LONGEST_TEXT = 1_000
_CLOCKS_DIFFER_BY = timedelta(minutes=5)
Truth = bool | int | float | str


def _is_scalar(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        raise PydanticCustomError("truth_type", "must be a label, or a number for a regression")
    if isinstance(value, float) and not math.isfinite(value):  # JSON can say 1e999
        raise PydanticCustomError("finite_number", "must be a finite number")
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        raise PydanticCustomError("truth_type", "must be a label, and no label is that long")
    return value


class FeedbackIn(BaseModel):
    """What was true of one prediction."""

    model_config = STRICT

    prediction_id: Annotated[UUID, Strict(strict=False)]
    truth: Annotated[Truth, BeforeValidator(_is_scalar)] = Field(
        description="One of the model's labels; for a regression, a number.", examples=["positive"]
    )
    time: StoredInstant | None = Field(None, description="As of when; without it, as of now.")


class FeedbackManyIn(BaseModel):
    """The same for many; each has its own fate."""

    model_config = STRICT

    items: list[FeedbackIn] = Field(min_length=1, description="As many as a batch may have rows.")


class FeedbackResult(BaseModel):
    """What became of one statement."""

    prediction_id: UUID
    status: Literal["recorded", "corrected", "unchanged", "superseded"] = Field(
        description="`unchanged`: it was known; `superseded`: something newer is."
    )
    revisions: int = Field(description="How often the truth of this prediction has been corrected.")


class FeedbackFailed(BaseModel):
    """One statement that was not recorded, and why."""

    error: FieldProblem


class FeedbackManyOut(BaseModel):
    """The results in the order of the items."""

    results: list[FeedbackResult | FeedbackFailed]
    counts: Counts


_ITEM = TypeAdapter(FeedbackIn).validator.validate_python
_NAMES = tuple(FeedbackIn.model_fields)
_UNKNOWN = FieldError("prediction_not_found", "no prediction of that id is on record", field="prediction_id")
_UNDERWAY = FieldError(
    "storage_unavailable", "not in the database, which does not have everything yet; send it again", "prediction_id"
)
_EXAMPLE = {"items": [{"prediction_id": "01a206f1-193a-7896-8e7a-4878df603498", "truth": "positive"}]}


def _body_schema() -> dict[str, Any]:
    """Both forms; without references, since FastAPI collects the schemas of typed bodies only."""
    item = TypeAdapter(FeedbackIn).json_schema()
    many = TypeAdapter(FeedbackManyIn).json_schema()
    del many["$defs"]
    many["properties"]["items"]["items"] = item
    return {"anyOf": [item, many]}


@router.post(
    "/v2/feedback",
    response_model=FeedbackResult | FeedbackManyOut,
    responses=problems(
        MalformedJson,
        PredictionNotFound,
        TooManyRows,
        UnsupportedMediaType,
        InvalidInput,
        StorageUnavailable,
        *REFUSALS,
    ),
    openapi_extra=needs(
        "feedback",
        requestBody={
            "required": True,
            "content": {"application/json": {"schema": _body_schema(), "example": _EXAMPLE}},
        },
    ),
)
async def give_feedback(request: Request, services: ServicesDep, admission: AdmissionDep) -> Response:
    """Say what turned out to be true of one prediction, or of many with `items`.

    The newest truth stands: by its `time`, or by its arrival where it has none. Sending the same again changes nothing;
    another truth with a later time, or with the same, corrects. Of many, each has a result or an error in its place; of
    one, the error is the answer. Predictions that others asked for need the scope `read`, too. Each item costs as much
    as a request.
    """
    document = await request.json()
    many = isinstance(document, dict) and "items" in document
    items = _items(document, services.settings.bounds.max_batch_rows) if many else [document]
    services.limits.settle(admission.grant, len(items))
    desk = _Desk(services, admission.principal, datetime.now(UTC))
    results = await on_thread(lambda: desk.take([desk.read(item) for item in items]))
    results = await desk.look_again(results)
    return _answer_many(results) if many else _answer_one(results[0])


def _items(document: dict[str, Any], most: int) -> list[Any]:
    items = document["items"]
    if len(document) > 1:
        raise _wrong("unknown_field", "items stands alone; time and truth belong into each item")
    if not isinstance(items, list):
        raise _wrong("wrong_type", "must be an array")
    if not items:
        raise _wrong("too_few_rows", "must have at least one item")
    if len(items) > most:
        raise TooManyRows(f"one request may carry at most {most} items", limit=most)
    return items


def _wrong(code: str, detail: str) -> InvalidInput:
    return InvalidInput.because([FieldError(code, detail, field="items")])


Result = tuple[Statement, Outcome | FieldError] | FieldError


class _Desk:
    """Takes the statements of one request."""

    def __init__(self, services: Services, principal: Principal, now: datetime) -> None:
        self._services = services
        self._principal = principal
        self._now = now
        self._truths: dict[tuple[str, int], Callable[[Any, Any], Any]] = {}

    def read(self, item: Any) -> Statement | FieldError:
        """An item as a statement, or the first thing that is wrong with it."""
        try:
            given = _ITEM(item)
        except ValidationError as error:
            return field_errors(error, _NAMES, most=1)[0]
        at = given.time
        if at is not None and at > self._now + _CLOCKS_DIFFER_BY:
            return FieldError("out_of_range", "must not be in the future", field="time")
        # A clock that is a little ahead must not keep a correction of the next minute from being the newer one.
        return Statement(given.prediction_id, given.truth, at and min(at, self._now))

    def take(self, statements: Sequence[Statement | FieldError]) -> list[Result]:
        """Record in one transaction what can be; a result for each."""
        wanted = {s.prediction_id for s in statements if isinstance(s, Statement)}
        if not wanted:
            return [s for s in statements if isinstance(s, FieldError)]
        with self._services.database.writing() as connection:
            targets = queries.targets(queries.on(connection), sorted(wanted))
            checked = [self._check(s, targets) if isinstance(s, Statement) else s for s in statements]
            good = [c for c in checked if isinstance(c, Statement)]
            standing = newest(good)
            chosen = {identifier: good[place] for identifier, place in standing.items()}
            outcomes = put(connection, chosen, principal=self._principal.subject, now=self._now)
        return [
            (given, self._outcome(found, chosen, outcomes)) if isinstance(given, Statement) else given
            for given, found in zip(statements, checked, strict=True)
        ]

    async def look_again(self, results: list[Result]) -> list[Result]:
        """What is not on record may be on its way there: bring it in, once, and take those statements again."""
        missing = [i for i, result in enumerate(results) if _is_missing(result, self._now)]
        if not missing:
            return results
        complete = await flush(self._services)
        again = [result[0] for i in missing if isinstance(result := results[i], tuple)]
        for place, result in zip(missing, await on_thread(lambda: self.take(again)), strict=True):
            still = _is_missing(result, self._now) and not complete
            results[place] = _UNDERWAY if still else result
        return results

    def _check(self, statement: Statement, targets: dict[UUID, queries.Target]) -> Statement | FieldError:
        target = targets.get(statement.prediction_id)
        if target is None or not readable(self._principal, target.principal):
            return _UNKNOWN
        truths = self._truths.get((target.model, target.version))
        if truths is None:
            manifest = _manifest(self._services.registry, target.model, target.version)
            truths = self._truths[target.model, target.version] = _truths(manifest)
        truth = truths(statement.truth, target.output)
        return truth if isinstance(truth, FieldError) else replace(statement, truth=truth)

    @staticmethod
    def _outcome(
        found: Statement | FieldError, chosen: dict[UUID, Statement], outcomes: dict[UUID, Outcome]
    ) -> Outcome | FieldError:
        if isinstance(found, FieldError):
            return found
        outcome = outcomes[found.prediction_id]
        return outcome if chosen[found.prediction_id] is found else Outcome("superseded", outcome.revisions)


def _is_missing(result: Result, now: datetime) -> bool:
    return isinstance(result, tuple) and result[1] is _UNKNOWN and may_exist(result[0].prediction_id, now)


def _truths(manifest: Manifest | None) -> Callable[[Any, Any], Any]:
    """What may be true of a version's predictions: (truth, what was predicted) → the truth as it is kept, or an error.

    Of a version that is gone, the prediction itself says what kind of value it is.
    """
    if manifest is None:
        return _like
    labels = {(type(label), label): label for label in manifest.outputs.labels}
    return (lambda truth, _: _label(truth, labels)) if labels else (lambda truth, _: _number(truth))


def _label(truth: Truth, labels: dict[tuple[type, Label], Label]) -> Label | FieldError:
    if isinstance(truth, float) and truth.is_integer():
        truth = int(truth)  # some languages, and columns with gaps, know no other numbers
    if not isinstance(truth, float) and (type(truth), truth) in labels:  # True equals 1, and is another label
        return labels[type(truth), truth]
    return FieldError("unknown_label", "is none of the model's labels", field="truth")


def _number(truth: Truth) -> float | FieldError:
    if isinstance(truth, bool | str):
        return FieldError("wrong_type", "must be a number", field="truth")
    try:
        return float(truth)
    except OverflowError:
        return FieldError("out_of_range", "is too large to be represented", field="truth")


def _like(truth: Truth, output: Any) -> Truth | FieldError:
    if isinstance(output, float):
        return _number(truth)
    if output is None or type(truth) is type(output):
        return truth
    return FieldError("wrong_type", "must be of the kind that was predicted", field="truth")


def _manifest(registry: ModelRegistry, name: str, version: int) -> Manifest | None:
    """That of a version which is on disk, whether it is served or not."""
    entry = registry.models.get(name)
    known = entry.versions.get(version) if entry is not None else None
    if known is None:
        return None
    if known.manifest is not None:
        return known.manifest
    try:
        return registry.source.manifest(name, version)
    except VersionRefused:
        return None


def _answer_one(result: Result) -> Response:
    error = result if isinstance(result, FieldError) else result[1]
    if error is _UNDERWAY:
        raise still_underway()
    if error is _UNKNOWN:
        raise PredictionNotFound(_UNKNOWN.detail)
    if isinstance(error, FieldError):
        raise InvalidInput.because([error])
    return _json(_document(result))


def _answer_many(results: Sequence[Result]) -> Response:
    documents = [_document(result) for result in results]
    failed = sum("error" in document for document in documents)
    return _json({"results": documents, "counts": {"succeeded": len(documents) - failed, "failed": failed}})


def _document(result: Result) -> dict[str, Any]:
    if isinstance(result, FieldError):
        return {"error": field_problem(result)}
    statement, outcome = result
    if isinstance(outcome, FieldError):
        return {"error": field_problem(outcome)}
    return {"prediction_id": statement.prediction_id, "status": outcome.status, "revisions": outcome.revisions}


def _json(document: Any) -> Response:
    return Response(to_json(document), media_type="application/json")
