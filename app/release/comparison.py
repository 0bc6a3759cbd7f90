"""How the versions of a model that run side by side compare, by what all workers have counted.

It is a function of the model's entry and of families of metrics, so whichever worker is asked, the figures are those of
the service as a whole.
"""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from app.inference.traffic import hindrance
from app.manifest import TrafficRules
from app.registry.aliases import CHALLENGER, CHAMPION, SHADOW
from app.registry.entries import ModelEntry
from app.telemetry.families import Family, Series

# Of a normal distribution: 95 % lie within so many standard deviations.
_DEVIATIONS = 1.959964

Judged = Sequence[tuple[Any, Any]]  # what was answered, and what turned out to be true


class Share(BaseModel):
    """A share of rows, and between which shares it lies with 95 % confidence (Wilson)."""

    share: float
    low: float
    high: float


class Accuracy(BaseModel):
    """By the feedback on a version's newest predictions."""

    rows: int = Field(description="Predictions of which it is known what was true.")
    correct: Share | None = Field(None, description="Of a classifier.")
    mean_absolute_error: float | None = Field(None, description="Of a regression.")


class Arm(BaseModel):
    """What one version has done since the service was started, also for callers who have named it."""

    version: int
    rows: int = Field(description="Answered with a prediction.")
    errors: dict[str, int] = Field({}, description="Rows answered with an error, by its code.")
    labels: dict[str, float] = Field({}, description="The share of each label among the predictions.")
    call_ms_p50: float | None = Field(None, description="Of a call of the model, which may have many rows.")
    call_ms_p99: float | None = None
    accuracy: Accuracy | None = Field(None, description="Absent without feedback, or without the database.")


class Split(BaseModel):
    """The champion and the challenger."""

    weight: float = Field(description="The share of keys that are the challenger's.")
    sticky_by: str
    stopped: str | None = Field(None, description="Why the challenger gets nothing: a stable code.")
    champion: Arm | None = None
    challenger: Arm


class Difference(BaseModel):
    """The shadow's score of the label that was answered, less the answer's own.

    For a regression it is the number instead of the score, in standard deviations of what training saw.
    """

    rows: int
    mean: float
    p10: float
    p50: float
    p90: float


class RowTime(BaseModel):
    """Medians of what a row took in the same call, in microseconds."""

    answer_us: float
    shadow_us: float
    ratio: float = Field(description="How many times as long the shadow took.")


class Beside(BaseModel):
    """A shadow beside one of the versions that answer."""

    version: int
    outcomes: dict[str, int] = Field(description="Rows that agreed, flipped, failed, were refused, or dropped.")
    agreement: Share | None = Field(None, description="Among the rows that the shadow has answered, too.")
    flips: dict[str, dict[str, int]] = Field({}, description="By the label answered, and the one that the shadow said.")
    difference: Difference | None = None
    row_time: RowTime | None = None


class Shadow(BaseModel):
    """The version that answers nobody."""

    version: int
    share: float = Field(description="Of the answered calls, on which it is tried.")
    stopped: str | None = Field(None, description="Why it gets nothing: a stable code.")
    beside: list[Beside] = []


class Comparison(BaseModel):
    """The versions of a model that run beside its champion."""

    model: str
    since: datetime | None = Field(None, description="When the oldest process of the service was started.")
    rules: TrafficRules
    challenger: Split | None = None
    shadow: Shadow | None = None


def compare(entry: ModelEntry, families: Iterable[Family]) -> Comparison:
    """The figures of a model, without what the database knows."""
    figures = _Figures(entry.name, families)
    started = figures.one("process_start_time_seconds")
    return Comparison(
        model=entry.name,
        since=datetime.fromtimestamp(started, UTC) if started else None,
        rules=entry.traffic,
        challenger=_split(entry, figures) if CHALLENGER in entry.aliases else None,
        shadow=_shadow(entry, figures) if SHADOW in entry.aliases else None,
    )


def judge(judged: Judged, *, regression: bool) -> Accuracy | None:
    """How good predictions were; None where nothing is known of any."""
    if not judged:
        return None
    if regression:
        error = sum(abs(float(said) - float(truth)) for said, truth in judged) / len(judged)
        return Accuracy(rows=len(judged), mean_absolute_error=error)
    return Accuracy(rows=len(judged), correct=wilson(sum(said == truth for said, truth in judged), len(judged)))


def wilson(count: int, of: int) -> Share | None:
    """The share, and Wilson's interval around it: right also near 0 and 1, and for few rows. None for no rows."""
    if not of:
        return None
    share, square = count / of, _DEVIATIONS**2
    middle = (share + square / (2 * of)) / (1 + square / of)
    half = _DEVIATIONS / (1 + square / of) * math.sqrt(share * (1 - share) / of + square / (4 * of * of))
    return Share(share=share, low=max(0.0, middle - half), high=min(1.0, middle + half))


class Bucket(NamedTuple):
    """So many observations between two numbers."""

    low: float
    high: float
    rows: float


def quantile(buckets: Sequence[Bucket], part: float) -> float:
    """Below which so great a part of the observations lies, as if they were spread evenly in each bucket."""
    left = part * sum(bucket.rows for bucket in buckets)
    for bucket in buckets:
        if bucket.rows and left <= bucket.rows:
            return bucket.low + (bucket.high - bucket.low) * left / bucket.rows
        left -= bucket.rows
    return buckets[-1].high


def _split(entry: ModelEntry, figures: "_Figures") -> Split:
    challenger, champion = entry.aliases[CHALLENGER], entry.aliases.get(CHAMPION)
    none = None if entry.traffic.challenger_weight else "weight_zero"
    return Split(
        weight=entry.traffic.challenger_weight,
        sticky_by=entry.traffic.sticky_by,
        stopped=hindrance(entry, CHALLENGER) or none,
        champion=None if champion is None else _arm(champion, figures),
        challenger=_arm(challenger, figures),
    )


def _arm(version: int, figures: "_Figures") -> Arm:
    counts = {values[0]: numbers[0] for values, numbers in figures.of("presage_predictions", version).items()}
    rows = sum(counts.values())
    errors = {values[0]: int(numbers[0]) for values, numbers in figures.of("presage_row_errors", version).items()}
    calls = figures.buckets("presage_model_duration_seconds", version)
    known = any(bucket.rows for bucket in calls)
    return Arm(
        version=version,
        rows=int(rows),
        errors=errors,
        labels={label: count / rows for label, count in sorted(counts.items()) if label and rows},
        call_ms_p50=quantile(calls, 0.5) * 1000 if known else None,
        call_ms_p99=quantile(calls, 0.99) * 1000 if known else None,
    )


def _shadow(entry: ModelEntry, figures: "_Figures") -> Shadow:
    version = entry.aliases[SHADOW]
    none = None if entry.traffic.shadow_share else "share_zero"
    stopped = {
        values[-1] for values, numbers in figures.of("presage_traffic_stopped", version, SHADOW).items() if numbers[0]
    }
    hung = "hung" if "hung" in stopped else None
    answering = {entry.aliases.get(CHAMPION), entry.aliases.get(CHALLENGER)} - {None, version}
    return Shadow(
        version=version,
        share=entry.traffic.shadow_share,
        stopped=hindrance(entry, SHADOW) or none or hung,
        beside=[_beside(other, version, figures) for other in sorted(filter(None, answering))],
    )


def _beside(version: int, shadow: int, figures: "_Figures") -> Beside:
    rows = figures.of("presage_shadow_rows", version, shadow)
    outcomes = {values[0]: int(numbers[0]) for values, numbers in sorted(rows.items())}
    flips: dict[str, dict[str, int]] = {}
    for (answered, said), numbers in sorted(figures.of("presage_shadow_flips", version, shadow).items()):
        flips.setdefault(answered, {})[said] = int(numbers[0])
    agreed = outcomes.get("agreed", 0)
    return Beside(
        version=version,
        outcomes=outcomes,
        agreement=wilson(agreed, agreed + outcomes.get("flipped", 0)),
        flips=flips,
        difference=_difference(version, shadow, figures),
        row_time=_row_time(version, shadow, figures),
    )


def _difference(version: int, shadow: int, figures: "_Figures") -> Difference | None:
    name = "presage_shadow_difference"
    up, down = (figures.buckets(name, version, shadow, direction) for direction in ("up", "down"))
    signed = [Bucket(-b.high, -b.low, b.rows) for b in reversed(down)] + list(up)
    rows = int(sum(bucket.rows for bucket in signed))
    if not rows:
        return None
    total = figures.total(name, version, shadow, "up") - figures.total(name, version, shadow, "down")
    p10, p50, p90 = (quantile(signed, part) for part in (0.1, 0.5, 0.9))
    return Difference(rows=rows, mean=total / rows, p10=p10, p50=p50, p90=p90)


def _row_time(version: int, shadow: int, figures: "_Figures") -> RowTime | None:
    name = "presage_shadow_row_seconds"
    answer, said = (figures.buckets(name, version, shadow, by) for by in ("answer", "shadow"))
    if not (any(bucket.rows for bucket in answer) and any(bucket.rows for bucket in said)):
        return None
    answer_us, shadow_us = (quantile(buckets, 0.5) * 1e6 for buckets in (answer, said))
    return RowTime(answer_us=answer_us, shadow_us=shadow_us, ratio=shadow_us / answer_us)


class _Figures:
    """The series of one model."""

    def __init__(self, model: str, families: Iterable[Family]) -> None:
        self._model = model
        self._families = {family.name: family for family in families}

    def of(self, name: str, *labels: object) -> Series:
        """The series whose labels begin with the model's name and these, by the labels that are left."""
        family, first = self._families.get(name), (self._model, *map(str, labels))
        series = family.series if family is not None else {}
        return {values[len(first) :]: found for values, found in series.items() if values[: len(first)] == first}

    def buckets(self, name: str, *labels: object) -> list[Bucket]:
        """Of the one histogram with these labels; what lies beyond the last bound counts as lying there."""
        numbers = self.of(name, *labels).get(())
        if numbers is None:
            return []
        bounds = self._families[name].bounds
        edges = [*pairwise((0.0, *bounds)), (bounds[-1], bounds[-1])]
        return [Bucket(low, high, rows) for (low, high), rows in zip(edges, numbers[:-1], strict=True)]

    def total(self, name: str, *labels: object) -> float:
        """The sum of the observations of that histogram."""
        numbers = self.of(name, *labels).get(())
        return numbers[-1] if numbers else 0.0

    def one(self, name: str) -> float | None:
        """The value of a family without labels."""
        family = self._families.get(name)
        return family.series[()][0] if family is not None and family.series else None
