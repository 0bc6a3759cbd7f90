"""The catalog: which models there are, what they take and give, how good they are, and who they are for."""

import asyncio
import contextlib
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.access import needs
from app.api.deps import PrincipalDep, ServicesDep
from app.api.offload import on_thread
from app.api.problems import REFUSALS, problems
from app.auth.principal import Principal
from app.errors import Forbidden, ModelNotFound, StorageUnavailable
from app.inference.cache import CacheUse, PredictionCache
from app.manifest import Card, Evaluation, InputField, Outputs, Task, Versions
from app.registry.aliases import CHAMPION
from app.registry.entries import ModelEntry, State, VersionEntry
from app.release.comparison import Comparison, Split, compare, judge
from app.storage import queries
from app.wiring import Services

if TYPE_CHECKING:
    from app.runtimes.compile import Form

# With `predict` one sees the models that one may call, with `read` all.
_NEEDS = needs("predict", "read")

router = APIRouter(prefix="/v2/catalog", tags=["catalog"])


class ModelSummary(BaseModel):
    """A model in a line."""

    name: str
    task: Task | None = Field(None, description="Unknown where no manifest can be read.")
    description: str = ""
    versions: list[int]
    aliases: dict[str, int]
    state: State = Field(description="Of the version that answers by default.")


class Catalog(BaseModel):
    """Every model."""

    models: list[ModelSummary]


class FormDetail(BaseModel):
    """A form of the estimator: what answers in it, and how it compares with scikit-learn."""

    form: str
    chosen_for: str | None = Field(None, description="The numbers of rows in a call for which it answers.")
    microseconds: dict[str, float] = Field({}, description="Time for each row, by the number of rows in a call.")
    largest_difference: float | None = Field(None, description="Of a number, on the sample that it was compared on.")
    labels_equal: bool | None = Field(None, description="Whether every label of the sample was the same.")
    reason: str | None = Field(None, description="Why it answers nothing.")


class VersionDetail(BaseModel):
    """One version; those without a readable manifest have only their number, state and reason."""

    version: int
    state: State
    reason: str | None = Field(None, description="Why it is refused: a stable code.")
    aliases: list[str] = []
    task: Task | None = None
    card: Card | None = None
    fields: list[InputField] = []
    outputs: Outputs | None = None
    evaluations: list[Evaluation] = []
    training_data: str | None = None
    training_rows: int | None = None
    sha256: str | None = None
    fitted_with: Versions | None = Field(
        None,
        description="The libraries with which it was fitted. Where they are not those that serve it, its golden rows "
        "came out equal all the same.",
    )
    runtime: str | None = Field(None, description="What executes it.")
    forms: list[FormDetail] = Field([], description="The forms that were tried for it, and how each compares.")
    cache: CacheUse | None = Field(
        None,
        description="Where its answers are kept; `off` by the settings or by the model's rules, `needless` since it is "
        "as quick as a look-up.",
    )
    created_at: datetime | None = None
    code: str | None = None


class ModelDetail(BaseModel):
    """One model with all its versions."""

    name: str
    aliases: dict[str, int]
    pending: dict[str, int] = Field(
        {}, description="Aliases that are to point to other versions, which are being loaded or were refused."
    )
    versions: list[VersionDetail]


@router.get("", response_model_exclude_none=True, responses=problems(*REFUSALS), openapi_extra=_NEEDS)
async def list_models(services: ServicesDep, principal: PrincipalDep) -> Catalog:
    """List the models: with `read` all of them, with `predict` those that one may call."""
    entries = services.registry.models.values()
    return Catalog(models=[_summary(entry) for entry in entries if _sees(principal, entry.name)])


@router.get(
    "/{model}", response_model_exclude_none=True, responses=problems(ModelNotFound, *REFUSALS), openapi_extra=_NEEDS
)
async def describe_model(model: str, services: ServicesDep, principal: PrincipalDep) -> ModelDetail:
    """Describe one model: its versions, aliases, fields, figures and card."""
    if not _sees(principal, model):
        raise Forbidden("this needs the scope read, or predict for this model")
    entry = services.registry.model(model)
    return ModelDetail(
        name=entry.name,
        aliases=entry.aliases,
        pending=dict(entry.pending),
        versions=[_detail(entry, version, services.cache) for version in entry.versions.values()],
    )


@router.get(
    "/{model}/comparison",
    response_model_exclude_none=True,
    responses=problems(ModelNotFound, *REFUSALS),
    openapi_extra=_NEEDS,
)
async def compare_versions(model: str, services: ServicesDep, principal: PrincipalDep) -> Comparison:
    """Compare the challenger and the shadow of a model with its champion, by what all workers have counted."""
    if not _sees(principal, model):
        raise Forbidden("this needs the scope read, or predict for this model")
    entry = services.registry.model(model)
    if services.snapshots is not None:
        await services.snapshots.refresh()
    # Milliseconds, for which predictions need not wait.
    families = await asyncio.to_thread((services.snapshots or services.metrics).families)
    comparison = compare(entry, families)
    if comparison.challenger is not None:
        await _add_accuracy(comparison.challenger, entry, services)
    return comparison


async def _add_accuracy(split: Split, entry: ModelEntry, services: Services) -> None:
    """How good both arms turned out to be, where the database is there and knows."""

    def read() -> None:
        with services.database.reading() as connection:
            for arm in filter(None, (split.champion, split.challenger)):
                version = entry.versions.get(arm.version)
                if version is not None and version.manifest is not None:
                    judged = queries.judged(queries.on(connection), entry.name, arm.version)
                    arm.accuracy = judge(judged, regression=version.manifest.task == "regression")

    with contextlib.suppress(StorageUnavailable):  # the other figures do not need it
        await on_thread(read)


def _sees(principal: Principal, model: str) -> bool:
    return principal.may("read") or principal.may(f"predict:{model}")


def _summary(entry: ModelEntry) -> ModelSummary:
    default = entry.versions.get(entry.aliases.get(CHAMPION, 0)) or entry.versions[max(entry.versions)]
    manifest = default.manifest
    return ModelSummary(
        name=entry.name,
        task=manifest.task if manifest else None,
        description=manifest.card.description if manifest else "",
        versions=list(entry.versions),
        aliases=entry.aliases,
        state=entry.state,
    )


def _detail(entry: ModelEntry, version: VersionEntry, cache: PredictionCache) -> VersionDetail:
    return VersionDetail(
        version=version.version,
        state=version.state,
        reason=version.refusal.reason if version.refusal else None,
        aliases=sorted(alias for alias, number in entry.aliases.items() if number == version.version),
        cache=cache.use(version.model) if version.model else None,
        **_described(version),
    )


def _form(form: "Form") -> FormDetail:
    return FormDetail(
        form=form.form,
        chosen_for=form.chosen_for or None,
        microseconds={str(rows): round(figure, 1) for rows, figure in form.microseconds.items()},
        largest_difference=form.largest_difference,
        labels_equal=form.labels_equal,
        reason=form.reason or None,
    )


def _described(version: VersionEntry) -> dict[str, Any]:
    manifest = version.manifest
    if manifest is None:
        return {}
    return {
        "task": manifest.task,
        "card": manifest.card,
        "fields": manifest.fields,
        "outputs": manifest.outputs,
        "evaluations": manifest.training.evaluations,
        "training_data": manifest.training.data,
        "training_rows": manifest.training.rows,
        "sha256": manifest.artefact.sha256,
        "fitted_with": manifest.versions,
        "runtime": version.model.runtime.name if version.model else None,
        "forms": [_form(form) for form in version.model.forms] if version.model else [],
        "created_at": manifest.origin.created_at,
        "code": manifest.origin.code,
    }
