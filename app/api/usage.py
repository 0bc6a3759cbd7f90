"""`GET /v2/usage`: what a caller's plan is, and what is left of it."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.access import needs
from app.api.deps import AdmissionDep, ServicesDep
from app.api.problems import REFUSALS, problems
from app.auth.principal import VERBS

router = APIRouter(prefix="/v2/usage", tags=["access"])


class WindowOut(BaseModel):
    """What was used of the plan for one model; `requests` stands for everything that is no prediction."""

    name: str = Field(examples=["sentiment"])
    limit: int = Field(description="Rows, or requests, in a window.")
    window_seconds: int
    used: int
    remaining: int
    reset_seconds: int = Field(description="When all of it will be there again, if nothing more is used.")


class UsageOut(BaseModel):
    """The caller, as this service sees them."""

    principal: str
    scopes: list[str]
    plan: str = Field(description="For each model.", examples=["60000/minute"])
    usage: list[WindowOut] = Field(description="Of what has been used lately; anything else is untouched.")


@router.get("", responses=problems(*REFUSALS), openapi_extra=needs(*VERBS))
async def get_usage(services: ServicesDep, admission: AdmissionDep) -> UsageOut:
    """Tell the caller who they are, what they may do, and what is left of their plan."""
    principal = admission.principal
    windows = services.limits.usage(admission.who, principal.plan, services.registry.models)
    return UsageOut(
        principal=principal.subject,
        scopes=sorted(principal.scopes),
        plan=principal.plan or services.settings.limits.rate_limit,
        usage=[
            WindowOut(
                name=window.name,
                limit=window.limit,
                window_seconds=window.window_seconds,
                used=window.used,
                remaining=window.remaining,
                reset_seconds=window.reset_seconds,
            )
            for window in windows
        ],
    )
