"""Health: `live` says that the event loop turns, `ready` that every required model is verified and warm."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from app.api.access import PUBLIC
from app.api.deps import ServicesDep
from app.api.problems import problems
from app.board import Board
from app.errors import NotReady
from app.inference.cache import CacheState
from app.registry.entries import State
from app.registry.registry import RETRY_WHILE_LOADING, RETRY_WHILE_REFUSED, ModelRegistry
from app.storage.drain import DatabaseState
from app.storage.prediction_log import PredictionLog

router = APIRouter(prefix="/health", tags=["health"])


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class ModelHealth(BaseModel):
    """One version that an alias names, or a model as a whole where its aliases cannot be used."""

    model: str
    version: int | None = None
    state: State
    required: bool
    reason: str | None = Field(None, description="Why it is refused: a stable code; the log has the rest.")


class LogHealth(BaseModel):
    """The prediction log. A database that is away is no reason not to be ready: the journal keeps what it will get."""

    policy: Literal["require", "best-effort", "off"]
    journal: str = Field(description="`writable`, or why not: `full`, `unwritable`.")
    database: DatabaseState = Field(description="`behind`: its schema is; run `python -m app migrate`.")
    pending_bytes: int = Field(description="What the database does not have yet.")


class AccessHealth(BaseModel):
    """Who may, and how much. Nothing here is a reason not to be ready: what was known last stands."""

    clients: Literal["current", "stale", "never"] = Field(
        description="Clients, keys and revocations, as the database has them; `never`: it has not been read yet."
    )
    limits: Literal["off", "up", "down"] = Field(
        description="The sharing of limits between services, through Redis. Without it (`off`, `down`) each service "
        "allows the whole of every plan; its workers have it together all the same."
    )


class WorkersHealth(BaseModel):
    """The processes behind this socket; fewer than wanted while one of them is being replaced, more during a reload."""

    serving: int
    wanted: int


class Ready(BaseModel):
    """Every required model is served, and predictions can be put on record."""

    status: Literal["ready"] = "ready"
    workers: WorkersHealth | None = Field(None, description="Where there are several.")
    models: list[ModelHealth]
    log: LogHealth
    access: AccessHealth
    cache: CacheState = Field(
        description="Where answers are kept: nowhere (`off`), in this process (`memory`), and, beside that, in Redis: "
        "`up`, or `down` while it is away. No reason not to be ready: what is not found is computed."
    )


@router.head("/live", include_in_schema=False, openapi_extra=PUBLIC)
@router.get("/live", openapi_extra=PUBLIC)
async def live() -> Live:
    """Whether the event loop turns; nothing else is looked at."""
    return Live()


@router.head("/ready", include_in_schema=False, openapi_extra=PUBLIC)
@router.get("/ready", response_model_exclude_none=True, responses=problems(NotReady), openapi_extra=PUBLIC)
async def ready(request: Request, services: ServicesDep) -> Ready:
    """Whether every required model is verified and warm; until then 503 with the reasons and a Retry-After."""
    registry = services.registry
    models, log = report(registry), log_report(services.log)
    access = AccessHealth(clients=services.directory.state, limits=services.limits.state)
    if registry.ready and services.log.serving and not request.app.stopping:
        workers = workers_report(services.board)
        return Ready(models=models, log=log, access=access, cache=services.cache.state, workers=workers)
    missing = [name for name in registry.required if name not in registry.models]
    detail = "models are being loaded" if not registry.settled else "a required model is not served"
    if missing:
        detail = f"required models are missing: {', '.join(missing)}"
    if registry.ready:
        detail = f"predictions cannot be put on record: the journal is {log.journal}"
    if request.app.stopping:
        detail = "the service is stopping"
    raise NotReady(
        detail,
        retry_after=RETRY_WHILE_REFUSED if registry.settled else RETRY_WHILE_LOADING,
        models=[health.model_dump(exclude_none=True) for health in models],
        log=log.model_dump(),
        access=access.model_dump(),
        cache=services.cache.state,
    )


def workers_report(board: Board | None) -> WorkersHealth | None:
    """How many workers there are, and should be."""
    return WorkersHealth(serving=board.serving_workers, wanted=board.workers) if board else None


def log_report(log: PredictionLog) -> LogHealth:
    """The state of the prediction log."""
    return LogHealth(
        policy=log.policy,
        journal=log.failing or "writable",
        database=log.database_state,
        pending_bytes=log.pending_bytes,
    )


def report(registry: ModelRegistry) -> list[ModelHealth]:
    """The state of everything that should be served."""
    found = []
    for name, entry in registry.models.items():
        required = name in registry.required
        if entry.refusal is not None:
            found.append(ModelHealth(model=name, state="refused", required=required, reason=entry.refusal.reason))
        for version, v in entry.versions.items():
            if v.state != "idle":
                reason = v.refusal.reason if v.refusal else None
                health = ModelHealth(model=name, version=version, state=v.state, required=required, reason=reason)
                found.append(health)
    return found
