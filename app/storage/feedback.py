"""What turned out to be true, put beside the prediction: the newest statement stands, however often and late it comes.

One statement decides it in the database, so two callers at once cannot undo each other, and what arrives twice or in
the wrong order ends in the same row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Connection, Text, and_, case, cast, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from app.storage.tables import FeedbackRow

Status = Literal["recorded", "corrected", "unchanged", "superseded"]


@dataclass(frozen=True, slots=True)
class Statement:
    """Someone says what was true of a prediction, as of `at`; without it, as of the arrival."""

    prediction_id: UUID
    truth: Any
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a statement, and how often the truth has been corrected by now.

    `superseded`: something newer is on record.
    """

    status: Status
    revisions: int


def put(
    connection: Connection, statements: Mapping[UUID, Statement], *, principal: str, now: datetime
) -> dict[UUID, Outcome]:
    """Record each statement unless something newer is known; `now` is when they arrived.

    A later one with another truth corrects, and so does one of the same time. The same truth again corrects nothing;
    with a later time it confirms, so that nothing older than that can correct it. The predictions exist.
    """
    if not statements:
        return {}
    # In the order of ids, so that two calls with the same predictions wait for each other and never in a circle.
    rows = [
        {
            "prediction_id": identifier,
            "truth": statement.truth,
            "at": statement.at or now,
            "received_at": now,
            "principal": principal,
            "revisions": 0,
        }
        for identifier, statement in sorted(statements.items())
    ]
    written = {row.prediction_id: row for row in connection.execute(_upsert(connection.dialect.name), rows)}
    outcomes = {i: Outcome(_written(row, now), row.revisions) for i, row in written.items()}
    left = [identifier for identifier in statements if identifier not in written]
    return outcomes | {known.prediction_id: _left(known, statements) for known in _known(connection, left)}


def newest(statements: Sequence[Statement]) -> dict[UUID, int]:
    """Of several statements about one prediction in one request, the position of the one that stands.

    One without a time is as of now, later than any with one; of two of one time the second stands.
    """
    standing: dict[UUID, int] = {}
    for position, statement in enumerate(statements):
        other = standing.get(statement.prediction_id)
        if other is None or _not_older(statement, statements[other]):
            standing[statement.prediction_id] = position
    return standing


def _not_older(one: Statement, other: Statement) -> bool:
    return one.at is None or (other.at is not None and one.at >= other.at)


def _upsert(dialect: str) -> Any:
    """The insert that decides; it returns the rows that it wrote."""
    insert = postgresql.insert(FeedbackRow) if dialect == "postgresql" else sqlite.insert(FeedbackRow)
    new = insert.excluded
    differs = cast(FeedbackRow.truth, Text) != cast(new.truth, Text)
    corrects = and_(differs, new.at >= FeedbackRow.at)
    # Without a time of its own a statement has that of its arrival: then it is a repetition, not a confirmation.
    confirms = and_(~differs, new.at > FeedbackRow.at, new.at != new.received_at)
    return insert.on_conflict_do_update(
        index_elements=[FeedbackRow.prediction_id],
        set_={
            "truth": new.truth,
            "at": new.at,
            "received_at": case((differs, new.received_at), else_=FeedbackRow.received_at),
            "principal": case((differs, new.principal), else_=FeedbackRow.principal),
            "revisions": FeedbackRow.revisions + case((differs, 1), else_=0),
        },
        where=or_(corrects, confirms),
    ).returning(FeedbackRow.prediction_id, FeedbackRow.received_at, FeedbackRow.revisions)


def _written(row: Any, now: datetime) -> Status:
    """A confirmation keeps the time at which the truth first came in."""
    if row.received_at != now:
        return "unchanged"
    return "corrected" if row.revisions else "recorded"


def _known(connection: Connection, identifiers: Sequence[UUID]) -> list[Any]:
    found: list[Any] = []
    columns = select(FeedbackRow.prediction_id, FeedbackRow.truth, FeedbackRow.revisions)
    for start in range(0, len(identifiers), 1_000):
        some = identifiers[start : start + 1_000]
        found += connection.execute(columns.where(FeedbackRow.prediction_id.in_(some)))
    return found


def _left(known: Any, statements: Mapping[UUID, Statement]) -> Outcome:
    """Nothing was written: it is what was known, or older."""
    same = known.truth == statements[known.prediction_id].truth
    return Outcome("unchanged" if same else "superseded", known.revisions)
