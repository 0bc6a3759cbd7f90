"""Rows of the prediction log, put straight into the tables: many quickly, or one exactly as a test wants it."""

# ruff: noqa: S608 -- statements are put together from constants of this module

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import insert, text

from app.storage.database import Database
from app.storage.tables import FeedbackRow, PredictionRow

START = datetime(2026, 1, 1, tzinfo=UTC)


def identifier(milliseconds: float, number: int = 0) -> UUID:
    """The id of a prediction made so long after the start; `number` tells those of one millisecond apart."""
    made = int((START + timedelta(milliseconds=milliseconds)).timestamp() * 1000)
    return UUID(int=(made << 80) | (7 << 76) | (2 << 62) | number)


def row(milliseconds: float = 0, number: int = 0, **changes: Any) -> dict[str, Any]:
    """One row of a classifier with the labels `no` and `yes`."""
    return {
        "id": identifier(milliseconds, number),
        "at": START + timedelta(milliseconds=milliseconds),
        "request_id": "request-1",
        "principal": "anonymous",
        "model": "toy",
        "version": 1,
        "digest": "0" * 64,
        "protocol": "v2",
        "inputs": {"x": 1.5, "gap": None},
        "output": "yes",
        "label": "yes",
        "probabilities": {"no": 0.25, "yes": 0.75},
        "latency_ms": 1.5,
        "cached": False,
        "error": None,
        **changes,
    }


def failed_row(milliseconds: float = 0, number: int = 0, **changes: Any) -> dict[str, Any]:
    """One on which the model failed."""
    nothing = {"output": None, "label": None, "probabilities": None, "error": "model_failed"}
    return row(milliseconds, number, **{**nothing, **changes})


def add(database: Database, *rows: dict[str, Any]) -> list[UUID]:
    """Insert them; their ids."""
    with database.writing() as connection:
        connection.execute(insert(PredictionRow), list(rows))
    return [values["id"] for values in rows]


def add_feedback(database: Database, prediction_id: UUID, truth: Any = "no", **changes: Any) -> None:
    """Insert what was true of one."""
    values = {"prediction_id": prediction_id, "truth": truth, "principal": "anonymous", "revisions": 0, **changes}
    values = {"at": START, "received_at": START, **values}
    with database.writing() as connection:
        connection.execute(insert(FeedbackRow).values(values))


def add_many(database: Database, count: int, *, first: int = 0) -> None:
    """One row a millisecond, made by the database itself; every tenth has the label `no`."""
    start = int(START.timestamp() * 1000)
    columns = (
        "request_id, principal, model, version, digest, protocol, inputs, output, label, probabilities, "
        "latency_ms, cached, error"
    )
    label = "case when n % 10 = 0 then 'no' else 'yes' end"
    if database.dialect == "sqlite":
        series = (
            "with recursive s(n) as (select :first union all select n + 1 from s where n + 1 < :first + :count) "
            f"insert into predictions (id, at, {columns}) select "
            "printf('%012x', :start + n) || '70008000000000000000', "
            "strftime('%Y-%m-%d %H:%M:%f', (:start + n) / 1000.0, 'unixepoch'), "
        )
        ending = " from s"
        cast = ""
    else:
        series = (
            f"insert into predictions (id, at, {columns}) select "
            "(lpad(to_hex(:start + n), 12, '0') || '70008000000000000000')::uuid, "
            "to_timestamp((:start + n) / 1000.0), "
        )
        ending = " from generate_series(cast(:first as bigint), :first + :count - 1) as s(n)"
        cast = "::json"
    values = (
        f"'request-' || n, 'anonymous', 'toy', 1, '{'0' * 64}', 'v2', "
        f"('{{\"x\": ' || n || '}}'){cast}, ('\"' || {label} || '\"'){cast}, {label}, "
        f'\'{{"no": 0.25, "yes": 0.75}}\'{cast}, 1.5, {"0" if not cast else "false"}, null'
    )
    with database.writing() as connection:
        connection.execute(text(series + values + ending), {"start": start, "first": first, "count": count})
