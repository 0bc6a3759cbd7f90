"""The questions that the prediction log answers: one prediction, a page of them, all of them.

Every question is a walk along an index in the order of ids, a bounded number of rows at a time, so that none takes long
or holds much, however large the log is. Where a model is asked for without a version, its versions are walked side by
side, since the index has the version before the id. Nothing is kept open between two steps of a walk: a walk of hours
keeps no snapshot from being cleaned up.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from operator import attrgetter
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Select, func, select

from app.storage.ids import lowest_id
from app.storage.tables import FeedbackRow, PredictionRow

# Runs a statement and gives its rows. A page runs all of them on one connection; an export may take one for each.
Run = Callable[[Select[Any]], Sequence[Any]]

EXPORT_CHUNK = 1_000
# How many rows a page may look at when nothing but looking tells which of them match.
MOST_EXAMINED = 50_000
# Of how many predictions it is looked up whether they were right, when somebody asks how good a version is.
MOST_JUDGED = 10_000
_IDS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Feedback:
    """What turned out to be true."""

    truth: Any
    at: datetime
    received_at: datetime
    principal: str
    revisions: int


@dataclass(frozen=True, slots=True)
class LoggedPrediction:
    """One row of the log, with its feedback where there is any."""

    id: UUID
    at: datetime
    request_id: str
    principal: str
    model: str
    version: int
    digest: str
    protocol: str
    inputs: dict[str, Any]
    output: Any
    label: str | None
    probabilities: dict[str, float] | None
    latency_ms: float
    cached: bool
    error: str | None
    feedback: Feedback | None = None


@dataclass(frozen=True, slots=True)
class Filters:
    """Which predictions: made from `since` on and before `until`."""

    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None
    version: int | None = None
    label: str | None = None
    failed: bool | None = None
    principal: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some predictions, newest first, and where to go on; `after` is None at the end.

    A page may be short, or empty, and yet not be the last: a rare label is looked for in bounded steps.
    """

    predictions: list[LoggedPrediction]
    after: UUID | None


@dataclass(frozen=True, slots=True)
class Target:
    """What feedback is checked against."""

    id: UUID
    principal: str
    model: str
    version: int
    output: Any


_Conditions = list[ColumnElement[bool]]
_COLUMNS = (
    PredictionRow.id,
    PredictionRow.at,
    PredictionRow.request_id,
    PredictionRow.principal,
    PredictionRow.model,
    PredictionRow.version,
    PredictionRow.digest,
    PredictionRow.protocol,
    PredictionRow.inputs,
    PredictionRow.output,
    PredictionRow.label,
    PredictionRow.probabilities,
    PredictionRow.latency_ms,
    PredictionRow.cached,
    PredictionRow.error,
)
_FEEDBACK_COLUMNS = (
    FeedbackRow.truth,
    FeedbackRow.at.label("truth_at"),
    FeedbackRow.received_at,
    FeedbackRow.principal.label("truth_principal"),
    FeedbackRow.revisions,
)
_TARGET_COLUMNS = (
    PredictionRow.id,
    PredictionRow.principal,
    PredictionRow.model,
    PredictionRow.version,
    PredictionRow.output,
)
_BOTH: Select[Any] = select(*_COLUMNS, *_FEEDBACK_COLUMNS).outerjoin(
    FeedbackRow, FeedbackRow.prediction_id == PredictionRow.id
)


def on(connection: Connection) -> Run:
    """Run statements on this connection."""
    return lambda statement: connection.execute(statement).all()


def find(run: Run, identifier: UUID) -> LoggedPrediction | None:
    """The prediction of that id."""
    rows = run(_BOTH.where(PredictionRow.id == identifier))
    return _prediction(rows[0]) if rows else None


def page(run: Run, filters: Filters, *, after: UUID | None, size: int) -> Page:
    """The newest `size` predictions that are older than the id `after`, or the newest of all."""
    slices, wanted = _slices(run, filters), _conditions(filters)
    edges = [_edge(run, part, after, newest_first=True) for part in slices] if wanted else []
    floor = max((edge for edge in edges if edge is not None), default=None)
    bounded = [*wanted, *_between(None, floor, newest_first=True)]
    walks = [_walk(run, [*part, *bounded], [], start=after, newest_first=True, chunk=size + 1) for part in slices]
    found = list(islice(heapq.merge(*walks, key=attrgetter("id"), reverse=True), size + 1))
    if len(found) > size:
        return Page(found[:size], found[size - 1].id)
    return Page(found, floor)


def export(run: Run, filters: Filters, *, chunk: int = EXPORT_CHUNK) -> Iterator[LoggedPrediction]:
    """All of them, oldest first; at most `chunk` rows for each version are held at once."""
    wanted = _conditions(filters)
    walks = [_walk(run, part, wanted, start=None, newest_first=False, chunk=chunk) for part in _slices(run, filters)]
    return heapq.merge(*walks, key=attrgetter("id"))


def span(run: Run, filters: Filters) -> tuple[UUID, UUID] | None:
    """The first and the last id of the window, model and version; None where there is nothing.

    For a progress bar: how far along in time is known at once, where counting would take as long as the work.
    """
    # Not min and max: PostgreSQL has had those of a UUID since version 18 only.
    orders = (PredictionRow.id, PredictionRow.id.desc())
    statements = [
        select(PredictionRow.id).where(*part).order_by(order).limit(1)
        for part in _slices(run, filters)
        for order in orders
    ]
    ends = [row.id for statement in statements for row in run(statement)]
    return (min(ends), max(ends)) if ends else None


def targets(run: Run, identifiers: Sequence[UUID]) -> dict[UUID, Target]:
    """Those of the predictions that exist, held until the transaction ends, so that none is deleted meanwhile."""
    columns = select(*_TARGET_COLUMNS)
    found: dict[UUID, Target] = {}
    for start in range(0, len(identifiers), _IDS_AT_ONCE):
        some = identifiers[start : start + _IDS_AT_ONCE]
        held = columns.where(PredictionRow.id.in_(some)).with_for_update(read=True, key_share=True)
        found.update({row.id: Target(*row) for row in run(held)})
    return found


def judged(run: Run, model: str, version: int) -> list[tuple[Any, Any]]:
    """What was answered, and what turned out to be true, among the newest predictions of a version."""
    newest = (
        select(PredictionRow.id, PredictionRow.output)
        .where(PredictionRow.model == model, PredictionRow.version == version, PredictionRow.error.is_(None))
        .order_by(PredictionRow.id.desc())
        .limit(MOST_JUDGED)
        .subquery()
    )
    both = select(newest.c.output, FeedbackRow.truth).join(FeedbackRow, FeedbackRow.prediction_id == newest.c.id)
    return [(row.output, row.truth) for row in run(both)]


def models(run: Run) -> list[str]:
    """Every model that has rows; each costs one look into the index."""
    return _distinct(run, PredictionRow.model, [])


def versions(run: Run, model: str) -> list[int]:
    """Every version of the model that has rows."""
    return _distinct(run, PredictionRow.version, [PredictionRow.model == model])


def _distinct(run: Run, column: Any, conditions: _Conditions) -> list[Any]:
    """The values of an indexed column, ascending: from each straight to the next, where DISTINCT would read all."""
    found: list[Any] = []
    while True:
        beyond = [column > found[-1]] if found else []
        value = run(select(func.min(column)).where(*conditions, *beyond))[0][0]
        if value is None:
            return found
        found.append(value)


def _slices(run: Run, filters: Filters) -> list[_Conditions]:
    """Stretches of an index, each in the order of ids, that together are the window, model and version."""
    window = []
    if filters.since is not None:
        window.append(PredictionRow.id >= lowest_id(filters.since))
    if filters.until is not None:
        window.append(PredictionRow.id < lowest_id(filters.until))
    if filters.model is None:
        return [window]
    chosen = versions(run, filters.model) if filters.version is None else [filters.version]
    model = PredictionRow.model == filters.model
    return [[model, PredictionRow.version == version, *window] for version in chosen]


def _conditions(filters: Filters) -> _Conditions:
    """What no index knows."""
    found: _Conditions = []
    if filters.version is not None and filters.model is None:
        found.append(PredictionRow.version == filters.version)
    if filters.label is not None:
        found.append(PredictionRow.label == filters.label)
    if filters.failed is not None:
        found.append(PredictionRow.error.is_not(None) if filters.failed else PredictionRow.error.is_(None))
    if filters.principal is not None:
        found.append(PredictionRow.principal == filters.principal)
    return found


def _walk(
    run: Run, part: _Conditions, wanted: _Conditions, *, start: UUID | None, newest_first: bool, chunk: int
) -> Iterator[LoggedPrediction]:
    """Along the ids of a slice from beyond `start`; what is inserted meanwhile is met or was passed.

    Each step gives at most `chunk` rows. Where rows that are `wanted` may be far apart, it also looks at a bounded
    number only, so that no statement takes long.
    """
    order = PredictionRow.id.desc() if newest_first else PredictionRow.id
    statement = _BOTH.where(*part, *wanted).order_by(order).limit(chunk)
    while True:
        edge = _edge(run, part, start, newest_first=newest_first) if wanted else None
        rows = run(statement.where(*_between(start, edge, newest_first=newest_first)))
        yield from map(_prediction, rows)
        if len(rows) < chunk and edge is None:
            return
        start = rows[-1].id if len(rows) == chunk else edge


def _edge(run: Run, part: _Conditions, start: UUID | None, *, newest_first: bool) -> UUID | None:
    """The last id that a step beyond `start` may look at; None when all that is left may be."""
    order = PredictionRow.id.desc() if newest_first else PredictionRow.id
    beyond = _between(start, None, newest_first=newest_first)
    rows = run(select(PredictionRow.id).where(*part, *beyond).order_by(order).offset(MOST_EXAMINED - 1).limit(1))
    found: UUID | None = rows[0].id if rows else None
    return found


def _between(start: UUID | None, edge: UUID | None, *, newest_first: bool) -> _Conditions:
    """Beyond `start`, up to and with `edge`, in the direction of the walk."""
    found = []
    if start is not None:
        found.append(PredictionRow.id < start if newest_first else PredictionRow.id > start)
    if edge is not None:
        found.append(PredictionRow.id >= edge if newest_first else PredictionRow.id <= edge)
    return found


def _prediction(row: Any) -> LoggedPrediction:
    feedback = row[len(_COLUMNS) :]
    values = (*row[: len(_COLUMNS)], Feedback(*feedback) if feedback[1] is not None else None)
    return LoggedPrediction(*values)
