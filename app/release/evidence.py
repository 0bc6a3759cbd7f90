"""Evidence: what speaks for a candidate and what against it, as one typed document that is kept with the decision."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_ROWS = 10_000
MOST_SECONDS = 600.0

CheckName = Literal["schema", "golden", "replay", "latency", "accuracy"]
Share = Annotated[float, Field(ge=0, le=1)]


class Limits(BaseModel):
    """How much is asked of a candidate, and how far it may differ from the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)

    rows: Annotated[int, Field(ge=0, le=MOST_ROWS)] = Field(
        1_000, description="How many of the champion's newest answers are asked again."
    )
    seconds: Annotated[float, Field(gt=0, le=MOST_SECONDS)] = Field(
        60.0, description="How long that may take; what has been asked by then counts."
    )
    least_rows: Annotated[int, Field(ge=1, le=MOST_ROWS)] = Field(
        30, description="With fewer comparable answers nothing is said of how alike they are."
    )
    most_broken: Annotated[int, Field(ge=0, le=MOST_ROWS)] = Field(
        0, description="How many rows the candidate may refuse or fail on that the champion answered."
    )
    least_equal: Share = Field(0.9, description="The least share of equal labels.")
    most_shift: Annotated[float, Field(ge=0, le=1e6)] = Field(
        0.5,
        description="A regression's 95th percentile of the absolute difference, in standard deviations of the "
        "champion's answers.",
    )
    most_latency_ratio: Annotated[float, Field(gt=0, le=1e6)] = Field(
        2.0, description="How many times as long as the champion a candidate may take that needs over 1 ms a row."
    )
    least_pairs: Annotated[int, Field(ge=1, le=MOST_ROWS)] = Field(
        100, description="With feedback on fewer rows nothing is said of which is right more often."
    )
    significance: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="Below this p-value a candidate that is right less often is worse."
    )


class Check(BaseModel):
    """One question, and its answer: null where there is not enough to say."""

    model_config = ConfigDict(frozen=True)

    check: CheckName
    passed: bool | None
    detail: str = Field(examples=["998 of 1,000 labels equal"])
    figures: dict[str, Any] = {}


class Evidence(BaseModel):
    """The checks of one candidate against the champion of that moment."""

    model_config = ConfigDict(frozen=True)

    model: str
    candidate: int
    champion: int | None
    at: datetime
    passed: bool = Field(description="Whether no check has failed.")
    checks: list[Check]
    limits: Limits


def conclude(
    checks: list[Check], *, model: str, candidate: int, champion: int | None, at: datetime, limits: Limits
) -> Evidence:
    """What is unknown speaks against nobody: a candidate passes unless a check failed."""
    passed = all(check.passed is not False for check in checks)
    return Evidence(
        model=model, candidate=candidate, champion=champion, at=at, passed=passed, checks=checks, limits=limits
    )
