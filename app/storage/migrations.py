"""Migrations: a step of their own, before the service starts, and safe to try from many places at once.

The lock is the database's: a session's advisory lock in PostgreSQL, which ends with its connection however that ends,
and a lock on a file beside the file of SQLite. A change that cannot get its locks on a table gives up after seconds,
so that the traffic which queues behind it goes on, and tries again.
"""

import fcntl
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psycopg2
from alembic import command, context
from alembic.config import Config
from alembic.runtime.migration import MigrationInfo
from alembic.script import Script
from alembic.util import CommandError
from sqlalchemy import URL, Connection, DateTime, create_engine, event, exc
from sqlalchemy.pool import NullPool

from app.config import StorageSettings
from app.errors import MigrationFailed
from app.storage.database import begin_sqlite, connect_postgresql, connect_sqlite, database_url, first_line
from app.storage.revisions import ROOT
from app.storage.tables import Base, UtcDateTime

# Any number that nobody else uses: "presage" in ASCII.
_LOCK_KEY = int.from_bytes(b"presage", "big")
_PATIENCE_SECONDS = 600.0
_POLL_SECONDS = 0.1
_TABLE_LOCK_MS = 4_000
_ATTEMPTS = 10
# lock_not_available, deadlock_detected.
_TRY_AGAIN = {"55P03", "40P01"}


@dataclass(frozen=True, slots=True)
class Applied:
    """A revision that was not there before."""

    revision: str
    title: str


def upgrade(storage: StorageSettings, *, patience: float = _PATIENCE_SECONDS) -> list[Applied]:
    """Bring the database to the newest revision, waiting up to `patience` seconds for others who do the same.

    Returns what this call applied. Raises MigrationFailed, or InvalidSettings.
    """
    applied: list[Applied] = []
    config = Config(ROOT / "alembic.ini")
    config.attributes.update(storage=storage, patience=patience, applied=applied)
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise MigrationFailed(f"the database is not one that this release can migrate: {error}") from None
    except exc.DBAPIError as error:
        raise MigrationFailed(first_line(error.orig)) from None
    except (psycopg2.Error, sqlite3.Error) as error:
        raise MigrationFailed(first_line(error)) from None
    return applied


def run_online(storage: StorageSettings) -> None:
    """What `alembic/env.py` does with a database: alembic's command, alone, with new attempts at locked tables."""
    url = database_url(storage)
    patience = context.config.attributes.get("patience", _PATIENCE_SECONDS)
    with _LOCKS[url.get_backend_name()](url, patience), _connection(url) as connection:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                _run(connection)
            except exc.OperationalError as error:
                if getattr(error.orig, "pgcode", None) not in _TRY_AGAIN or attempt == _ATTEMPTS:
                    raise
                connection.rollback()
                time.sleep(random.uniform(0.5, 1.5))  # noqa: S311 -- jitter, not a secret
            else:
                return


def run_offline(storage: StorageSettings) -> None:
    """What `alembic/env.py` does with `--sql`: print the statements for somebody else to run."""
    context.configure(url=database_url(storage), literal_binds=True, **_options())
    with context.begin_transaction():
        context.run_migrations()


def _run(connection: Connection) -> None:
    # A transaction for each revision, in SQLite too: what dies in the middle leaves the one before, whole.
    context.configure(connection=connection, transaction_per_migration=True, transactional_ddl=True, **_options())
    with context.begin_transaction():
        context.run_migrations()


def _options() -> dict[str, Any]:
    return {
        "target_metadata": Base.metadata,
        "compare_server_default": True,
        "render_as_batch": True,
        "render_item": _render,
        "on_version_apply": _note,
    }


def _note(*, step: MigrationInfo, **_: Any) -> None:
    applied = context.config.attributes.get("applied")
    script = step.up_revision
    if applied is not None and step.is_upgrade and isinstance(script, Script):
        applied.append(Applied(script.revision, script.doc.rstrip(".")))


def _render(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """A migration says what the database stores, and does not import what may change."""
    return f"sa.{DateTime(timezone=True)!r}" if kind == "type" and isinstance(item, UtcDateTime) else False


@contextmanager
def _connection(url: URL) -> Iterator[Connection]:
    def connect() -> Any:
        if url.get_backend_name() == "postgresql":
            return connect_postgresql(url, statement_ms=0, lock_ms=_TABLE_LOCK_MS)
        connection = connect_sqlite(url, isolation_level=None)
        # Readers and the one writer do not wait for each other then. The file keeps it.
        connection.execute("pragma journal_mode = wal")
        return connection

    engine = create_engine(url, creator=connect, poolclass=NullPool, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "begin", begin_sqlite)
    with engine.connect().execution_options(begin="begin immediate") as connection:
        yield connection


@contextmanager
def _advisory_lock(url: URL, patience: float) -> Iterator[None]:
    """On a connection of its own: a revision may end transactions, and a session's lock outlives them."""
    with closing(connect_postgresql(url, statement_ms=0, lock_ms=0)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:

            def take() -> bool:
                cursor.execute("select pg_try_advisory_lock(%s)", (_LOCK_KEY,))
                return bool(cursor.fetchone()[0])

            _wait_for(take, patience)
            yield


@contextmanager
def _file_lock(url: URL, patience: float) -> Iterator[None]:
    """On a file that stays, since who removes it may remove another's lock."""
    path = Path(f"{url.database}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise MigrationFailed(f"{path}: {error.strerror}") from None

    def take() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        _wait_for(take, patience)
        yield
    finally:
        os.close(descriptor)


def _wait_for(take: Callable[[], bool], patience: float) -> None:
    deadline = time.monotonic() + patience
    while not take():
        if time.monotonic() > deadline:
            raise MigrationFailed(f"another migration has kept its lock for {patience:.0f} seconds")
        time.sleep(_POLL_SECONDS)


_LOCKS = {"postgresql": _advisory_lock, "sqlite": _file_lock}
