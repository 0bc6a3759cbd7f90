"""Forgetting: predictions past their age, and all that there is of one caller; feedback goes with its prediction.

Both walk along the ids in steps of their own transactions, so that nothing is locked for long, and an interrupted run
has done what it had done: the next one goes on. What somebody else is holding, such as a prediction that receives its
feedback just now, is left for the next run instead of waited for.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, delete, insert, select

from app.storage.ids import lowest_id, new_id
from app.storage.queries import models, on, versions
from app.storage.tables import AuditRow, FeedbackRow, PredictionRow

BATCH = 5_000


class Transactions(Protocol):
    """What is needed of a database."""

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction, committed at its end."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """What one step deleted."""

    model: str
    predictions: int
    feedback: int


@dataclass(frozen=True, slots=True)
class Erased:
    """What there was of a caller: predictions that it asked for, and feedback on them or given by it."""

    predictions: int
    feedback: int


def expire(
    database: Transactions, days: Callable[[str], int], *, now: datetime | None = None, batch: int = BATCH
) -> Generator[Deleted]:
    """Delete what is older than `days(model)`, 0 meaning never; yields after each step, whose work is then committed.

    The caller decides what happens between two steps, and may stop there.
    """
    now = now or datetime.now(UTC)
    with database.writing() as connection:
        run = on(connection)
        found = [(model, version) for model in models(run) for version in versions(run, model)]
    for model, version in found:
        age = days(model)
        if age:
            part = (PredictionRow.model == model, PredictionRow.version == version)
            expired = PredictionRow.id < lowest_id(now - timedelta(days=age))
            for deleted in _delete_all(database, [*part, expired], batch):
                yield Deleted(model, *deleted)


def _delete_all(
    database: Transactions, conditions: Sequence[ColumnElement[bool]], batch: int
) -> Iterator[tuple[int, int]]:
    """Step by step along an index that has the ids of these conditions in order."""
    last: UUID | None = None
    while True:
        beyond = [] if last is None else [PredictionRow.id > last]
        statement = select(PredictionRow.id).where(*conditions, *beyond).order_by(PredictionRow.id).limit(batch)
        with database.writing() as connection:
            identifiers = list(connection.scalars(statement.with_for_update(skip_locked=True)))
            deleted = _delete(connection, identifiers)
        if identifiers:
            last = identifiers[-1]
            yield deleted
        if len(identifiers) < batch:
            return


def _delete(connection: Connection, identifiers: Sequence[UUID]) -> tuple[int, int]:
    """These predictions first: whoever puts feedback to one holds it, and finds it gone afterwards."""
    if not identifiers:
        return 0, 0
    predictions = connection.execute(delete(PredictionRow).where(PredictionRow.id.in_(identifiers))).rowcount
    feedback = connection.execute(delete(FeedbackRow).where(FeedbackRow.prediction_id.in_(identifiers))).rowcount
    return predictions, feedback


def erase_subject(
    database: Transactions, principal: str, *, by: str, now: datetime | None = None, batch: int = BATCH
) -> Erased:
    """Delete every prediction and every feedback of a caller, and put on record that it was done, by whom.

    No index has the caller: all ids are walked over, `batch` of them in a step. What is still in a journal is not here
    yet; bring it in first.
    """
    predictions = feedback = 0
    for low, high in _steps(database, PredictionRow.id, batch):
        with database.writing() as connection:
            step = select(PredictionRow.id).where(
                PredictionRow.id > low, PredictionRow.id <= high, PredictionRow.principal == principal
            )
            counts = _delete(connection, list(connection.scalars(step.with_for_update())))
            predictions, feedback = predictions + counts[0], feedback + counts[1]
    for low, high in _steps(database, FeedbackRow.prediction_id, batch):
        with database.writing() as connection:
            given = delete(FeedbackRow).where(
                FeedbackRow.prediction_id > low, FeedbackRow.prediction_id <= high, FeedbackRow.principal == principal
            )
            feedback += connection.execute(given).rowcount
    with database.writing() as connection:
        connection.execute(
            insert(AuditRow).values(
                id=new_id(),
                at=now or datetime.now(UTC),
                principal=by,
                action="log.erase",
                subject=principal,
                before={"predictions": predictions, "feedback": feedback},
                after={"predictions": 0, "feedback": 0},
            )
        )
    return Erased(predictions, feedback)


def _steps(database: Transactions, column: Any, batch: int) -> Iterator[tuple[UUID, UUID]]:
    """Ranges of ids, each with at most `batch` of those that exist: beyond the first, up to and with the second."""
    low, last = UUID(int=0), UUID(int=(1 << 128) - 1)
    while low < last:
        statement = select(column).where(column > low).order_by(column).offset(batch - 1).limit(1)
        with database.writing() as connection:
            high = connection.scalar(statement) or last
        yield low, high
        low = high
