"""The audit of models: who changed what is served, from what to what, and on which evidence.

A row has its id before it is written, so that a change that could not be recorded at once is recorded later, however
often that is tried, by one row that says when it really was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from app.storage.queries import Run
from app.storage.tables import AuditRow


@dataclass(frozen=True, slots=True)
class Entry:
    """One change; `before` and `after` are JSON documents."""

    id: UUID
    at: datetime
    principal: str
    action: str
    subject: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries, newest first, and where to go on; `after` is None at the end."""

    entries: list[Entry]
    after: UUID | None


_COLUMNS: Sequence[Any] = (
    AuditRow.id,
    AuditRow.at,
    AuditRow.principal,
    AuditRow.action,
    AuditRow.subject,
    AuditRow.before,
    AuditRow.after,
)


def record(connection: Connection, entry: Entry) -> None:
    """Put a change on record, once: an entry that is there already stays as it is."""
    insert = postgresql.insert(AuditRow) if connection.dialect.name == "postgresql" else sqlite.insert(AuditRow)
    values = {column.key: getattr(entry, column.key) for column in _COLUMNS}
    connection.execute(insert.values(values).on_conflict_do_nothing(index_elements=[AuditRow.id]))


def document(entry: Entry) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "id": str(entry.id),
        "time": entry.at.isoformat(),
        "principal": entry.principal,
        "action": entry.action,
        "subject": entry.subject,
        "before": entry.before,
        "after": entry.after,
    }


def page(
    run: Run,
    *,
    subject: str | None = None,
    actions: Sequence[str] = (),
    after: UUID | None = None,
    size: int = 50,
) -> Page:
    """The newest `size` entries that are older than `after`; of one subject or some actions, where they are named."""
    statement = select(*_COLUMNS).order_by(AuditRow.id.desc()).limit(size + 1)
    if subject is not None:
        statement = statement.where(AuditRow.subject == subject)
    if actions:
        statement = statement.where(AuditRow.action.in_(actions))
    if after is not None:
        statement = statement.where(AuditRow.id < after)
    found = [Entry(*row) for row in run(statement)]
    return Page(found[:size], found[size - 1].id if len(found) > size else None)
