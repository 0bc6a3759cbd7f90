"""`/admin/models`: which versions answer, for administrators; `python -m app models` does the same without a server.

A change is carried out and on record before it is answered, and the answer says what this process serves by then;
other processes follow by themselves.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from app.api.access import needs
from app.api.deps import PrincipalDep, ServicesDep
from app.api.json_route import JsonRoute
from app.api.offload import MOST_SECONDS, on_thread
from app.api.predictions import Cursor
from app.api.problems import REFUSALS, problems
from app.errors import (
    AliasProtected,
    ChampionChanged,
    InvalidInput,
    MalformedJson,
    ModelNotFound,
    ModelsUnwritable,
    NothingToRollBack,
    PresageError,
    PromotionRefused,
    StorageUnavailable,
    UnsupportedMediaType,
    VersionNotFound,
    VersionUnusable,
)
from app.manifest import ALIAS, ModelName, TrafficRules, Version
from app.pipelines.rows import STRICT
from app.registry.entries import ModelEntry, State, VersionEntry
from app.release.changes import LONGEST_REASON, PROMOTE, ROLLBACK, Change
from app.release.evidence import Evidence, Limits
from app.storage import audit, queries
from app.storage.ids import CURSOR, from_cursor, to_cursor
from app.wiring import Services

_NEEDS = needs("admin")
# Beside a service that has callers, the gate works for a quarter of the time.
_GATE_SHARE = 0.25
# To load a version takes as long as it takes; a costly one is minutes.
_LOADING_SECONDS = 300.0

router = APIRouter(prefix="/admin", tags=["releases"])
_with_body = APIRouter(route_class=JsonRoute)
_without_body = APIRouter()

Model = Annotated[ModelName, Path(description="The model's name.", max_length=64)]
Alias = Annotated[str, Path(description="Such as `challenger`, `shadow` or `v1`.", pattern=f"^{ALIAS.pattern}$")]
Wanted = Version | Annotated[str, Field(min_length=1, max_length=32)]


class AliasIn(BaseModel):
    """What the alias is to stand for."""

    model_config = STRICT

    version: Wanted = Field(description="The number of a version, or another alias.", examples=[2])


class PromotionIn(BaseModel):
    """A candidate, and how much is asked of it."""

    model_config = STRICT

    version: Wanted = Field(description="The number of a version, or an alias such as `challenger`.", examples=[2])
    force: bool = Field(default=False, description="Promote it whatever the evidence says; this goes on record.")
    reason: str = Field("", max_length=LONGEST_REASON, description="Required with `force`.")
    limits: Limits = Limits()


class RollbackIn(BaseModel):
    """May be empty."""

    model_config = STRICT

    leaving: Version | None = Field(
        None,
        alias="from",
        description="The version that is to be left. Where another one is the champion already, nothing changes, so "
        "that a repeated call does no harm.",
    )


class VersionOut(BaseModel):
    """A version on disk, as this process has it."""

    version: int
    state: State
    loaded: bool = Field(description="Whether it answers without having to be loaded first.")
    aliases: list[str]
    created_at: datetime | None = None
    reason: str | None = Field(None, description="Why it is refused; the log has the rest.")


class ModelOut(BaseModel):
    """A model, as this process has it."""

    name: str
    state: State
    ready: bool
    aliases: dict[str, int]
    traffic: TrafficRules
    reason: str | None = Field(None, description="Why the model as a whole is refused.")
    versions: list[VersionOut]


class ModelsOut(BaseModel):
    """All models, by name."""

    models: list[ModelOut]


class ChangeOut(BaseModel):
    """What came of a change: the aliases on disk now, and what this process makes of them."""

    model: str
    changed: bool = Field(description="False where it was so before.")
    recorded: bool = Field(description="False where the audit will have it when the database is back.")
    detail: str = Field(examples=["2 is the champion now"])
    aliases: dict[str, int]
    evidence: Evidence | None = None
    serving: ModelOut | None = None


class PromotionOut(BaseModel):
    """One change of the champion."""

    id: UUID
    time: datetime
    principal: str
    action: Literal["promote", "rollback"]
    champion_before: int | None
    champion: int | None
    forced: bool = False
    reason: str = ""
    evidence: Evidence | None = None


class PromotionsOut(BaseModel):
    """Changes of the champion, newest first."""

    promotions: list[PromotionOut]
    next: str | None = Field(None, description="The `cursor` of the next page; null at the end.")


class EntryOut(BaseModel):
    """One change of a client, a key, a token, a model, or of what the log holds."""

    id: UUID
    time: datetime
    principal: str = Field(description="Who did it; `cli:NAME` at a terminal.")
    action: str = Field(examples=["model.promote"])
    subject: str
    before: Any = None
    after: Any = None


class AuditOut(BaseModel):
    """Changes, newest first."""

    entries: list[EntryOut]
    next: str | None = Field(None, description="The `cursor` of the next page; null at the end.")


class AuditQuery(BaseModel):
    """Which page."""

    model_config = ConfigDict(extra="forbid")

    size: int = Field(50, ge=1, le=500)
    cursor: Cursor | None = Field(
        None, description="The `next` of the page before.", json_schema_extra={"pattern": CURSOR}
    )

    @property
    def after(self) -> UUID | None:
        """The id after which the page begins."""
        return None if self.cursor is None else from_cursor(self.cursor)


class WholeAuditQuery(AuditQuery):
    """Which changes."""

    subject: str | None = Field(None, max_length=255, pattern=r"^[^\x00]*$", description="A model, client or key.")
    action: str | None = Field(None, max_length=64, pattern=r"^[a-z.]*$", description="Such as `model.promote`.")


def _responses(*kinds: type[PresageError]) -> dict[int | str, dict[str, Any]]:
    return problems(*kinds, InvalidInput, StorageUnavailable, *REFUSALS)


def _change_responses(*kinds: type[PresageError]) -> dict[int | str, dict[str, Any]]:
    return _responses(ModelNotFound, *kinds, VersionUnusable, ModelsUnwritable)


_BODY = (MalformedJson, UnsupportedMediaType)


@_without_body.get("/models", responses=problems(*REFUSALS), openapi_extra=_NEEDS)
async def list_models(services: ServicesDep) -> ModelsOut:
    """List the models: their versions, what their names stand for, how traffic is shared out, and what is refused."""
    return ModelsOut(models=[_model(entry) for entry in services.registry.models.values()])


@_with_body.put(
    "/models/{model}/aliases/{alias}",
    responses=_change_responses(VersionNotFound, AliasProtected, *_BODY),
    openapi_extra=_NEEDS,
)
async def set_alias(
    model: Model, alias: Alias, asked: AliasIn, services: ServicesDep, principal: PrincipalDep
) -> ChangeOut:
    """Have an alias stand for a version, which is proven first; the champion changes by a promotion."""
    by = principal.subject
    return await _changed(services, lambda: services.releases.set_alias(model, alias, asked.version, by=by))


@_without_body.delete(
    "/models/{model}/aliases/{alias}", responses=_change_responses(AliasProtected), openapi_extra=_NEEDS
)
async def delete_alias(model: Model, alias: Alias, services: ServicesDep, principal: PrincipalDep) -> ChangeOut:
    """Take an alias away; again is no error."""
    return await _changed(services, lambda: services.releases.delete_alias(model, alias, by=principal.subject))


@_with_body.put("/models/{model}/traffic", responses=_change_responses(*_BODY), openapi_extra=_NEEDS)
async def set_traffic(model: Model, asked: TrafficRules, services: ServicesDep, principal: PrincipalDep) -> ChangeOut:
    """Say how callers who name no version are shared out; what is left out has its default."""
    by, members = principal.subject, asked.model_dump()
    return await _changed(services, lambda: services.releases.set_traffic(model, members, by=by))


@_with_body.post(
    "/models/{model}/promote",
    responses=_change_responses(VersionNotFound, PromotionRefused, ChampionChanged, *_BODY),
    openapi_extra=_NEEDS,
)
async def promote(model: Model, asked: PromotionIn, services: ServicesDep, principal: PrincipalDep) -> ChangeOut:
    """Make a version the champion, if the evidence allows it: it is compared with the champion on what was logged.

    That takes up to `limits.seconds`, and longer where versions take long to load. A 409 `promotion_refused` has the
    `evidence` as a member.
    """

    def work() -> Change:
        return services.releases.promote(
            model,
            asked.version,
            by=principal.subject,
            limits=asked.limits,
            force=asked.force,
            reason=asked.reason,
            share=_GATE_SHARE,
        )

    return await _changed(services, work, seconds=asked.limits.seconds + _LOADING_SECONDS)


@_with_body.post(
    "/models/{model}/rollback", responses=_change_responses(NothingToRollBack, *_BODY), openapi_extra=_NEEDS
)
async def rollback(model: Model, asked: RollbackIn, services: ServicesDep, principal: PrincipalDep) -> ChangeOut:
    """Make the previous champion the champion again, at once and without a gate, also while the database is away."""
    by = principal.subject
    return await _changed(services, lambda: services.releases.rollback(model, by=by, leaving=asked.leaving))


@_without_body.get(
    "/models/{model}/promotions",
    responses=_responses(ModelNotFound),
    openapi_extra=_NEEDS,
)
async def list_promotions(model: Model, asked: Annotated[AuditQuery, Query()], services: ServicesDep) -> PromotionsOut:
    """List the promotions and rollbacks of a model, newest first, with their evidence."""
    page = await _page(services, asked, subject=model, actions=(PROMOTE, ROLLBACK))
    if not page.entries:
        services.registry.model(model)
    return PromotionsOut(promotions=[_promotion(entry) for entry in page.entries], next=_next(page))


@_without_body.get("/audit", responses=_responses(), openapi_extra=_NEEDS)
async def list_audit(asked: Annotated[WholeAuditQuery, Query()], services: ServicesDep) -> AuditOut:
    """List who changed what, newest first."""
    page = await _page(services, asked, subject=asked.subject, actions=(asked.action,) if asked.action else ())
    entries = [
        EntryOut(
            id=entry.id,
            time=entry.at,
            principal=entry.principal,
            action=entry.action,
            subject=entry.subject,
            before=entry.before,
            after=entry.after,
        )
        for entry in page.entries
    ]
    return AuditOut(entries=entries, next=_next(page))


async def _changed(services: Services, change: Callable[[], Change], *, seconds: float = MOST_SECONDS) -> ChangeOut:
    """Make a change, and have it bite here before anybody hears of it."""
    made = await on_thread(change, seconds=seconds)
    await services.registry.refreshed()
    entry = services.registry.models.get(made.model)
    return ChangeOut(
        model=made.model,
        changed=made.changed,
        recorded=made.recorded,
        detail=made.detail,
        aliases=made.aliases,
        evidence=made.evidence,
        serving=None if entry is None else _model(entry),
    )


async def _page(services: Services, asked: AuditQuery, *, subject: str | None, actions: tuple[str, ...]) -> audit.Page:
    """What is carried out comes on record first, so that nothing in effect is missing."""

    def read() -> audit.Page:
        services.releases.settle()
        with services.database.reading() as connection:
            run = queries.on(connection)
            return audit.page(run, subject=subject, actions=actions, after=asked.after, size=asked.size)

    return await on_thread(read)


def _next(page: audit.Page) -> str | None:
    return None if page.after is None else to_cursor(page.after)


def _model(entry: ModelEntry) -> ModelOut:
    return ModelOut(
        name=entry.name,
        state=entry.state,
        ready=entry.ready,
        aliases=entry.aliases,
        traffic=entry.traffic,
        reason=entry.refusal and entry.refusal.reason,
        versions=[_version(entry, version) for version in entry.versions.values()],
    )


def _version(entry: ModelEntry, version: VersionEntry) -> VersionOut:
    return VersionOut(
        version=version.version,
        state=version.state,
        loaded=version.model is not None,
        aliases=sorted(alias for alias, number in entry.aliases.items() if number == version.version),
        created_at=version.manifest and version.manifest.origin.created_at,
        reason=version.refusal and version.refusal.reason,
    )


def _promotion(entry: audit.Entry) -> PromotionOut:
    before, after = entry.before or {}, entry.after or {}
    return PromotionOut(
        id=entry.id,
        time=entry.at,
        principal=entry.principal,
        action="promote" if entry.action == PROMOTE else "rollback",
        champion_before=before.get("aliases", {}).get("champion"),
        champion=after.get("aliases", {}).get("champion"),
        forced=after.get("forced", False),
        reason=after.get("reason", ""),
        evidence=after.get("evidence"),
    )


router.include_router(_without_body)
router.include_router(_with_body)
