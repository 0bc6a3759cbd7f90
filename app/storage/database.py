"""Database: where the record goes in the end, PostgreSQL or a file of SQLite, behind one engine.

No prediction comes here. Whatever does come — a read, feedback, the log's writer — waits for a bounded time and then
fails as one error of ours: to connect, for a connection of the pool, for a lock, for a statement, and for a server that
keeps its connections open and no longer answers.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, Self, cast

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import structlog
from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url

from app.config import StorageSettings
from app.errors import InvalidSettings, StorageUnavailable
from app.storage import writer
from app.storage.revisions import SchemaState, compare, revisions
from app.storage.watchdog import Watchdog, watched

log = structlog.get_logger(__name__)

Dialect = Literal["sqlite", "postgresql"]

_RETRY_AFTER_SECONDS = 2
_POOL: dict[str, Any] = {
    "pool_size": 5,
    "max_overflow": 0,
    "pool_timeout": 1.0,
    "pool_pre_ping": True,
    "pool_recycle": 300,
    "pool_use_lifo": True,
    "hide_parameters": True,  # else inputs would stand in logs
}
# What the address itself says wins. libpq would wait for a connection for as long as the network does.
_CONNECT: dict[str, Any] = {
    "application_name": "presage",
    "connect_timeout": 2,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 3000,
}
_READ_MS, _LOCK_MS, _WRITER_MS = 4_000, 2_000, 60_000
_IDLE_MS = 60_000
# Longer than a statement may take, so that a server that can still speak says it itself.
_SILENCE_SECONDS = 5.0
_BUSY_SECONDS = 5.0
_DRIVERS = {
    "postgres": "postgresql+psycopg2",
    "postgresql": "postgresql+psycopg2",
    "postgresql+psycopg2": "postgresql+psycopg2",
    "sqlite": "sqlite",
}
# undefined_table, undefined_column, invalid_schema_name, insufficient_privilege: the database is not as we left it.
_NOT_OURS = {"42P01", "42703", "3F000", "42501"}


def database_url(settings: StorageSettings) -> URL:
    """DATABASE_URL with the driver that is installed. Raises InvalidSettings, which never repeats the address."""
    try:
        url = make_url(settings.database_url.get_secret_value().strip())
    except (exc.ArgumentError, ValueError):  # the second: a port that is no number
        raise _refused("is no address; it must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME") from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise _refused("must begin with sqlite:/// or postgresql://")
    if not url.database or url.database == ":memory:":
        raise _refused("must name a file" if driver == "sqlite" else "must name a database")
    if driver == "sqlite" and (url.query or url.host):
        raise _refused("must be sqlite:///FILE and no more; an absolute path makes four slashes")
    return url.set(drivername=driver)


def _refused(what: str) -> InvalidSettings:
    return InvalidSettings([f"DATABASE_URL: {what}"])


class Database:
    """The one engine, made when it is first needed. Any thread may use it; a context manager closes it."""

    def __init__(self, settings: StorageSettings, *, silence: float = _SILENCE_SECONDS) -> None:
        """Connects to nothing; a server that says nothing for `silence` seconds is given up. Raises InvalidSettings."""
        self.url = database_url(settings)
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._watchdog = Watchdog(silence)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection of the pool; the next use opens it again."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()
        self._watchdog.close()

    @property
    def dialect(self) -> Dialect:
        """Which of the two it is."""
        return cast("Dialect", self.url.get_backend_name())

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for one unit of work that changes nothing. Raises StorageUnavailable."""
        with _errors_are_ours(), self._open_engine().connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction, committed when the block ends well. Raises StorageUnavailable."""
        with _errors_are_ours(), self._open_engine().connect() as connection:
            # SQLite takes the lock for writing at once, and not in the middle, where it could only fail.
            connection.execution_options(begin="begin immediate")
            with connection.begin():
                yield connection

    def writer_connection(self) -> writer.Connection:
        """A connection of the driver itself, outside of the pool, for the log's thread. Raises the driver's errors."""
        if self.dialect == "sqlite":
            return connect_sqlite(self.url, isolation_level="IMMEDIATE")
        connection: writer.Connection = connect_postgresql(self.url, statement_ms=_WRITER_MS, lock_ms=_WRITER_MS)
        return connection

    def poll_connection(self) -> Any:
        """A connection of the driver itself, for a thread that asks one thing again and again, outside transactions.

        Through the engine that would be a millisecond of Python each time, during which predictions wait. Raises the
        driver's errors.
        """
        connection = self._connect()
        if self.dialect == "postgresql":
            connection.autocommit = True
        return connection

    def schema_state(self) -> SchemaState:
        """How the database's schema compares with this release's; never raises, and answers within seconds."""
        try:
            if self.dialect == "sqlite" and not Path(self.url.database or "").exists():
                return "absent"  # connecting would make the file
            return compare(self._found_revision(), revisions())
        except Exception as error:  # noqa: BLE001 -- whatever it is, the answer is the same
            log.debug("schema_state_unknown", error=type(error).__name__)
            return "unreachable"

    def _found_revision(self) -> str | None:
        with closing(self._connect()) as connection, closing(connection.cursor()) as cursor:
            try:
                cursor.execute("select version_num from alembic_version")
                row = cursor.fetchone()
            except psycopg2.errors.UndefinedTable:
                return None
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return None
                raise
        return row and str(row[0])

    def _connect(self) -> Any:
        """A connection as the pool has them."""
        if self.dialect == "sqlite":
            return connect_sqlite(self.url, isolation_level=None)
        return connect_postgresql(self.url, statement_ms=_READ_MS, lock_ms=_LOCK_MS, watchdog=self._watchdog)

    def _open_engine(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = create_engine(self.url, creator=self._connect, **_POOL)
                if self.dialect == "sqlite":
                    event.listen(self._engine, "begin", begin_sqlite)
            return self._engine


def connect_postgresql(url: URL, *, statement_ms: int, lock_ms: int, watchdog: Watchdog | None = None) -> Any:
    """A connection of psycopg2 with bounds on every wait; 0: none."""
    _, given = url.get_dialect()().create_connect_args(url)
    options = (
        f"-c statement_timeout={statement_ms} -c lock_timeout={lock_ms} "
        f"-c idle_in_transaction_session_timeout={_IDLE_MS} -c timezone=UTC {given.pop('options', '')}"
    )
    factories = watched(watchdog) if watchdog else {}
    return psycopg2.connect(**{**_CONNECT, **given}, options=options.strip(), **factories)


def connect_sqlite(url: URL, *, isolation_level: Literal["IMMEDIATE"] | None) -> sqlite3.Connection:
    """A connection to the file, whose folder is made; None as the level leaves `begin` to the caller.

    WAL needs no word here: the migration that makes the file sets it, and the file keeps it.
    """
    path = Path(url.database or "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise sqlite3.OperationalError(f"{path.parent}: {error.strerror}") from None
    # A pool hands a connection from thread to thread, though never to two at once.
    connection = sqlite3.connect(path, _BUSY_SECONDS, isolation_level=isolation_level, check_same_thread=False)
    connection.execute("pragma synchronous = normal")
    connection.execute("pragma temp_store = memory")
    connection.execute("pragma foreign_keys = on")
    return connection


def begin_sqlite(connection: Connection) -> None:
    """The driver would begin a transaction only before an INSERT, and none before a read or a CREATE TABLE."""
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "begin"))


@contextmanager
def _errors_are_ours() -> Iterator[None]:
    """What the driver, the pool or the server fail with becomes StorageUnavailable; what is our fault does not."""
    try:
        yield
    except exc.TimeoutError:
        log.warning("storage_unavailable", reason="every connection is in use")
        raise _unavailable() from None
    except exc.DBAPIError as error:
        if not _is_the_databases(error):
            raise
        log.warning("storage_unavailable", reason=first_line(error.orig))
        raise _unavailable() from None


def _is_the_databases(error: exc.DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.OperationalError):  # SQLite says so of everything, wrong SQL included
        code = getattr(error.orig, "sqlite_errorcode", None)  # None where it is we who raised it
        return code != sqlite3.SQLITE_ERROR or "no such" in str(error.orig)
    if isinstance(error, exc.ProgrammingError):
        return getattr(error.orig, "pgcode", None) in _NOT_OURS
    return not isinstance(error, exc.DataError | exc.IntegrityError | exc.NotSupportedError)


def _unavailable() -> StorageUnavailable:
    return StorageUnavailable("the database cannot be used now", retry_after=_RETRY_AFTER_SECONDS)


def first_line(error: object) -> str:
    """What a driver says, without the lines in which PostgreSQL repeats a row."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
