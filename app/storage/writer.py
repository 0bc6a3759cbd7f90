"""Records into the database in bulk, each exactly once: the driver's own fastest way, below SQLAlchemy.

Measured: SQLAlchemy's bulk insert costs 51 µs of our CPU a row, more than a prediction. PostgreSQL takes the journal's
own JSON through COPY and unpacks it itself for 0.6 µs of ours. A record that is there already is left alone, so that
writing a batch twice, after a crash between commit and acknowledgement, changes nothing.
"""

import io
import os
import socket
import sqlite3
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import psycopg2

from app.storage.payload import COLUMNS, OWN, SHARED, sqlite_values

_COLUMNS = ", ".join(COLUMNS)
_TYPES = (
    "id uuid, at timestamptz, request_id text, principal text, model text, version integer, digest text, "
    "protocol text, "
    "inputs json, output json, label text, probabilities json, latency_ms double precision, cached boolean, error text"
)
_STAGE = "create temporary table if not exists incoming (record json) on commit delete rows"
# No JSON text holds these bytes, so nothing is quoted and nothing is a delimiter.
_COPY = r"copy incoming from stdin with (format csv, delimiter e'\x01', quote e'\x02')"
_MERGE = (
    f"insert into predictions ({_COLUMNS}) select {_COLUMNS} from incoming, json_to_record(record) as r({_TYPES}) "  # noqa: S608
    "on conflict (id) do nothing"
)
# Records that are looked at together, and most rows of a statement. Those with the same `SHARED` bind one value for
# each of its columns: binding is a third of the cost of a row. A caller is not among them: rows sorted by caller reach
# the indexes in no good order. The driver lets go of the GIL once a statement: a row each would take it from the event
# loop a thousand times, and many rows would keep it long. Powers of two down from here, so that few statements are
# prepared.
_SQLITE_ROWS = 64


class Connection(Protocol):
    """What drivers have in common."""

    def cursor(self) -> Any:
        """A cursor."""

    def commit(self) -> None:
        """Make it last."""

    def rollback(self) -> None:
        """Take it back."""

    def close(self) -> None:
        """End it."""


class Poison(Exception):
    """The database refuses the content of a batch, and would again."""


Write = Callable[[Connection, Sequence[bytes]], None]


def write_postgresql(connection: Connection, records: Sequence[bytes]) -> None:
    """Write and commit. Raises Poison for what the records say, the driver's errors for everything else."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(_STAGE)
            cursor.copy_expert(_COPY, io.BytesIO(b"\n".join(records) + b"\n"))
            cursor.execute(_MERGE)
        connection.commit()
    except (psycopg2.DataError, psycopg2.IntegrityError) as error:
        connection.rollback()
        raise Poison(str(error).partition("\n")[0]) from None


def write_sqlite(connection: Connection, records: Sequence[bytes]) -> None:
    """Write and commit. Raises Poison for what the records say, the driver's errors for everything else."""
    try:
        cursor = connection.cursor()
        for start in range(0, len(records), _SQLITE_ROWS):
            for shared, own in sqlite_values(records[start : start + _SQLITE_ROWS]).items():
                _insert(cursor, shared, own)
        connection.commit()
    except (ValueError, TypeError, KeyError, OverflowError, sqlite3.DataError, sqlite3.IntegrityError) as error:
        connection.rollback()
        raise Poison(f"{type(error).__name__}: {error}") from None


def _insert(cursor: Any, shared: tuple[Any, ...], own: list[Any]) -> None:
    start, rows = 0, _SQLITE_ROWS
    while start < len(own):
        count = rows * len(OWN)
        if start + count > len(own):
            rows //= 2
        else:
            cursor.execute(_insert_of(rows), (*shared, *own[start : start + count]))
            start += count


@lru_cache
def _insert_of(rows: int) -> str:
    columns = ", ".join(f"?{place + 1}" for place in range(len(SHARED)))
    places = ", ".join([f"({columns}{', ?' * len(OWN)})"] * rows)
    return f"insert into predictions ({_COLUMNS}) values {places} on conflict (id) do nothing"  # noqa: S608


WRITERS: dict[str, Write] = {"postgresql": write_postgresql, "sqlite": write_sqlite}


def write_isolating(
    write: Write, connection: Connection, records: Sequence[bytes], bury: Callable[[bytes, str], None]
) -> int:
    """Write a batch; when its content is refused, each half by itself, down to the records that are to blame.

    Those are handed to `bury` with the reason. Returns how many the database took. Raises the driver's errors when it
    is not the content.
    """
    try:
        write(connection, records)
    except Poison as poison:
        if len(records) == 1:
            bury(records[0], str(poison))
            return 0
    else:
        return len(records)
    middle = len(records) // 2
    first = write_isolating(write, connection, records[:middle], bury)
    return first + write_isolating(write, connection, records[middle:], bury)


def cut(connection: Any) -> None:
    """Free a thread that waits for a server which does not answer.

    A frozen PostgreSQL heeds neither its own time-outs nor TCP's; the end of the socket it cannot keep from us.
    """
    if isinstance(connection, psycopg2.extensions.connection) and not connection.closed:
        with socket.socket(fileno=os.dup(connection.fileno())) as wire:
            wire.shutdown(socket.SHUT_RDWR)
