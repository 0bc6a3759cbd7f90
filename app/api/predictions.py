"""The prediction log, read: one prediction with what turned out to be true of it, or pages of them."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from app.api.access import needs
from app.api.deps import PrincipalDep, ServicesDep
from app.api.instants import Instant
from app.api.offload import on_thread
from app.api.problems import REFUSALS, problems
from app.auth.principal import Principal
from app.errors import InvalidInput, PredictionNotFound, StorageUnavailable
from app.manifest import ModelName, Version
from app.storage import queries
from app.storage.ids import CURSOR, from_cursor, may_exist, to_cursor
from app.wiring import Services

# With `predict` one reads one's own, with `read` everybody's.
_NEEDS = needs("predict", "read")

router = APIRouter(prefix="/v2/predictions", tags=["prediction log"])

_RETRY_SECONDS = 1


class FeedbackOut(BaseModel):
    """What turned out to be true, as it is known now."""

    truth: bool | int | float | str
    time: datetime = Field(description="As of when.")
    received_at: datetime = Field(description="When this truth came in first.")
    principal: str = Field(description="Who said so.")
    revisions: int = Field(description="How often it has been corrected.")


class LoggedOut(BaseModel):
    """One prediction as it was answered; or one on which the model failed, with an `error` and no prediction."""

    id: UUID
    time: datetime
    request_id: str
    principal: str
    model: str
    version: int
    digest: str = Field(description="SHA-256 of the artefact that answered.")
    protocol: str = Field(examples=["v2"])
    inputs: dict[str, Any] = Field(description="What the model's rules let the log keep of them.")
    prediction: bool | int | float | str | None = None
    probabilities: dict[str, float] | None = None
    latency_ms: float
    cached: bool
    error: str | None = Field(None, description="A stable code.")
    feedback: FeedbackOut | None = None


class LoggedPageOut(BaseModel):
    """Predictions, newest first. A page may be short and yet not the last: go on while there is a `next`."""

    predictions: list[LoggedOut]
    next: str | None = Field(None, description="The `cursor` of the next page; absent at the end.")


def _check_cursor(cursor: str) -> str:
    try:
        from_cursor(cursor)
    except ValueError:
        raise PydanticCustomError("cursor", "must be the `next` of an earlier page") from None
    return cursor


Cursor = Annotated[str, AfterValidator(_check_cursor)]


class PageQuery(BaseModel):
    """Which predictions. Every page of one question has the same parameters, but for the cursor."""

    model_config = ConfigDict(extra="forbid")

    since: Instant | None = Field(None, description="Made at this time or later.")
    until: Instant | None = Field(None, description="Made before this time.")
    model: ModelName | None = None
    version: Version | None = Field(None, description="The number of a version.")
    # No label has a zero byte, and PostgreSQL's driver does not take one.
    label: str | None = Field(
        None, description="The label that was predicted.", max_length=1_000, pattern=r"^[^\x00]*$"
    )
    failed: bool | None = Field(None, description="Only those on which the model failed, or only the others.")
    size: int = Field(50, ge=1, le=500)
    cursor: Cursor | None = Field(
        None,
        description="The `next` of the page before; pages stay apart however much is added meanwhile.",
        json_schema_extra={"pattern": CURSOR},
    )

    def filters(self, principal: str | None) -> queries.Filters:
        """The question without the page, among the predictions of one principal or of all."""
        return queries.Filters(self.since, self.until, self.model, self.version, self.label, self.failed, principal)

    @property
    def after(self) -> UUID | None:
        """The id after which the page begins."""
        return None if self.cursor is None else from_cursor(self.cursor)


@router.get(
    "",
    response_model_exclude_none=True,
    responses=problems(InvalidInput, StorageUnavailable, *REFUSALS),
    openapi_extra=_NEEDS,
)
async def list_predictions(
    asked: Annotated[PageQuery, Query()], services: ServicesDep, principal: PrincipalDep
) -> LoggedPageOut:
    """List what was answered, newest first, as soon as the database has it: one's own, or with `read` all."""
    filters = asked.filters(None if principal.may("read") else principal.subject)

    def read() -> LoggedPageOut:
        with services.database.reading() as connection:
            page = queries.page(queries.on(connection), filters, after=asked.after, size=asked.size)
        after = None if page.after is None else to_cursor(page.after)
        return LoggedPageOut(predictions=[_logged(prediction) for prediction in page.predictions], next=after)

    return await on_thread(read)


@router.get(
    "/{prediction_id}",
    response_model_exclude_none=True,
    responses=problems(PredictionNotFound, InvalidInput, StorageUnavailable, *REFUSALS),
    openapi_extra=_NEEDS,
)
async def get_prediction(prediction_id: UUID, services: ServicesDep, principal: PrincipalDep) -> LoggedOut:
    """Look one prediction up; one that was answered a moment ago is brought into the database first."""

    def read() -> LoggedOut | None:
        with services.database.reading() as connection:
            found = queries.find(queries.on(connection), prediction_id)
        return _logged(found) if found is not None and readable(principal, found.principal) else None

    found = await on_thread(read)
    if found is None and may_exist(prediction_id, datetime.now(UTC)):
        complete = await flush(services)
        found = await on_thread(read)
        if found is None and not complete:
            raise still_underway()
    if found is None:
        raise PredictionNotFound("no prediction of that id is on record")
    return found


def readable(principal: Principal, owner: str) -> bool:
    """Whether somebody may know of a prediction that `owner` asked for."""
    return owner == principal.subject or principal.may("read")


async def flush(services: Services) -> bool:
    """Bring what this process has answered so far into the database; whether that succeeded in time."""
    return await services.log.flush()


def still_underway() -> StorageUnavailable:
    """It may have been answered, and the database may not have it yet."""
    detail = "not in the database, which does not have everything yet; ask again"
    return StorageUnavailable(detail, retry_after=_RETRY_SECONDS)


def _logged(found: queries.LoggedPrediction) -> LoggedOut:
    return LoggedOut.model_construct(
        id=found.id,
        time=found.at,
        request_id=found.request_id,
        principal=found.principal,
        model=found.model,
        version=found.version,
        digest=found.digest,
        protocol=found.protocol,
        inputs=found.inputs,
        prediction=found.output,
        probabilities=found.probabilities,
        latency_ms=found.latency_ms,
        cached=found.cached,
        error=found.error,
        feedback=None if found.feedback is None else _known(found.feedback),
    )


def _known(feedback: queries.Feedback) -> FeedbackOut:
    return FeedbackOut.model_construct(
        truth=feedback.truth,
        time=feedback.at,
        received_at=feedback.received_at,
        principal=feedback.principal,
        revisions=feedback.revisions,
    )
