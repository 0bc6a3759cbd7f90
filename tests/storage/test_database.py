"""Database: its address, its bounds, and its one error, on both databases."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID, uuid4

import psycopg2
import pytest
from pydantic import SecretStr
from sqlalchemy import exc, insert, literal, select, text, update

from app.config import StorageSettings
from app.errors import InvalidSettings, StorageUnavailable
from app.storage.database import Database, database_url
from app.storage.tables import FeedbackRow
from tests.support.postgres import Postgres, running_postgres

NOW = datetime(2026, 7, 14, 12, 30, 15, 123456, tzinfo=UTC)


def _settings(url: str) -> StorageSettings:
    return StorageSettings(database_url=SecretStr(url))


def _add_feedback(database: Database, at: datetime = NOW, revisions: int = 1) -> UUID:
    identifier = uuid4()
    row = {"prediction_id": identifier, "truth": "yes", "at": at, "received_at": NOW, "principal": "p"}
    with database.writing() as connection:
        connection.execute(insert(FeedbackRow), [{**row, "revisions": revisions}])
    return identifier


def _count(database: Database) -> int:
    with database.reading() as connection:
        return len(connection.execute(select(FeedbackRow)).all())


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("postgresql://u:p%40ss@h:5433/d", "postgresql+psycopg2://u:p%40ss@h:5433/d"),
        ("postgres://u:p@h/d", "postgresql+psycopg2://u:p@h/d"),
        ("postgresql+psycopg2://u@h/d?sslmode=require", "postgresql+psycopg2://u@h/d?sslmode=require"),
        (" postgresql://h/d\n", "postgresql+psycopg2://h/d"),
        ("sqlite:///var/presage.db", "sqlite:///var/presage.db"),
        ("sqlite:////var/presage.db", "sqlite:////var/presage.db"),
    ],
)
def test_an_address_gets_the_driver_that_is_installed(given: str, becomes: str) -> None:
    """What operators write, and what platforms hand out."""
    assert database_url(_settings(given)).render_as_string(hide_password=False) == becomes


@pytest.mark.parametrize(
    "given",
    [
        "secret",
        "mysql://secret:secret@h/d",
        "postgresql+asyncpg://secret:secret@h/d",
        "postgresql+psycopg://secret:secret@h/d",
        "postgresql://secret:secret@h:secret/d",
        "postgresql://secret:secret@h",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite://secret/presage.db",
        "sqlite:///secret.db?mode=ro",
    ],
)
def test_an_address_that_cannot_be_used_is_named_and_not_repeated(given: str) -> None:
    """It may hold a password."""
    with pytest.raises(InvalidSettings) as refused:
        Database(_settings(given))
    assert "DATABASE_URL: " in str(refused.value)
    assert "secret" not in str(refused.value)


def test_what_is_written_can_be_read(database: Database) -> None:
    """A block that ends well is committed."""
    _add_feedback(database)
    assert _count(database) == 1


def test_what_a_block_wrote_before_it_failed_is_gone(database: Database) -> None:
    """The error passes through as it is."""

    def fail() -> None:
        with database.writing() as connection:
            connection.execute(text("delete from feedback"))
            raise KeyError("ours")

    _add_feedback(database)
    with pytest.raises(KeyError, match="ours"):
        fail()
    assert _count(database) == 1


def test_a_time_comes_back_as_the_same_instant_in_utc(database: Database) -> None:
    """Whatever zone it was measured in, to the microsecond."""
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-7)))
    _add_feedback(database, at=elsewhere)
    with database.reading() as connection:
        found = connection.scalars(select(FeedbackRow.at).where(FeedbackRow.at == elsewhere)).one()
    assert (found, found.utcoffset()) == (NOW, timedelta(0))


def test_a_time_without_a_zone_is_refused(database: Database) -> None:
    """It would be another instant on another machine; and that is our fault, not the database's."""
    with pytest.raises(exc.StatementError, match="no instant"):
        _add_feedback(database, at=NOW.replace(tzinfo=None))


@pytest.mark.parametrize("statement", ["selekt 1", "insert into alembic_version values (null)"])
def test_an_error_of_ours_is_not_blamed_on_the_database(database: Database, statement: str) -> None:
    """Wrong SQL, and values that break a rule, are no reason to try again."""
    with pytest.raises(exc.DBAPIError, match=r"syntax error|not-null|NOT NULL"), database.writing() as connection:
        connection.execute(text(statement))


def test_no_value_is_in_an_errors_message(database: Database) -> None:
    """Errors are logged, and rows hold what callers have sent."""
    row = {"prediction_id": uuid4(), "truth": "private", "at": NOW, "received_at": NOW, "principal": "p"}
    with pytest.raises(exc.IntegrityError) as failed, database.writing() as connection:
        connection.execute(insert(FeedbackRow), [{**row, "revisions": 1}] * 2)
    assert "private" not in str(failed.value)


def test_transactions_that_read_before_they_write_wait_for_each_other(sqlite_url: str) -> None:
    """In SQLite the second would otherwise fail in its middle, at once, whatever it is willing to wait."""
    with Database(_settings(sqlite_url)) as database:
        identifier = _add_feedback(database, revisions=0)
        row = FeedbackRow.prediction_id == identifier

        def increment(_: int) -> None:
            with database.writing() as connection:
                revisions = connection.scalars(select(FeedbackRow.revisions).where(row)).one()
                connection.execute(update(FeedbackRow).where(row).values(revisions=revisions + 1))

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(increment, range(40)))
        with database.reading() as connection:
            assert connection.scalars(select(FeedbackRow.revisions).where(row)).one() == 40


def test_a_file_of_sqlite_is_set_for_one_writer_and_many_readers(sqlite_url: str) -> None:
    """WAL, and as safe as WAL is against the death of the process."""
    with Database(_settings(sqlite_url)) as database, database.reading() as connection:
        names = ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        found = [connection.exec_driver_sql(f"pragma {name}").scalar() for name in names]
    assert found == ["wal", 1, 5000, 1]


def test_the_writers_connection_is_its_own(database: Database) -> None:
    """It needs none of the pool, and nothing is committed that was not meant to be."""
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(database.reading())
        connection = database.writer_connection()
        cursor = connection.cursor()
        cursor.execute("insert into alembic_version values ('more')")
        connection.rollback()
        connection.close()
    assert database.schema_state() == "current"


def test_the_writer_may_take_longer_than_a_reader(pg_url: str) -> None:
    """Its batches are large, and nobody waits for it."""
    with Database(_settings(pg_url)) as database:
        with closing(database.writer_connection()) as connection, connection.cursor() as cursor:
            cursor.execute("show statement_timeout")
            assert cursor.fetchone() == ("1min",)
        with database.reading() as reading:
            assert reading.exec_driver_sql("show statement_timeout").scalar() == "4s"


def test_an_address_may_say_more_than_we_do(pg_url: str) -> None:
    """Its own parameters win over ours."""
    asked = f"{pg_url}?application_name=mine&options=-c%20statement_timeout%3D1234"
    with Database(_settings(asked)) as database, database.reading() as connection:
        assert connection.exec_driver_sql("show application_name").scalar() == "mine"
        assert connection.exec_driver_sql("show statement_timeout").scalar() == "1234ms"
        assert connection.exec_driver_sql("show lock_timeout").scalar() == "2s"


def test_when_every_connection_is_in_use_the_next_is_refused_soon(database: Database) -> None:
    """After the pool's second, and not when somebody is done."""
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(database.reading())
        started = time.monotonic()
        with pytest.raises(StorageUnavailable) as refused:
            _count(database)
    assert time.monotonic() - started < 2
    assert refused.value.retry_after == 2
    assert _count(database) == 0


def test_a_database_without_tables_is_unavailable(empty_settings: StorageSettings) -> None:
    """A missing table is a missing migration, which somebody may be running."""
    with Database(empty_settings) as database:
        with pytest.raises(StorageUnavailable):
            _count(database)
        assert database.schema_state() == "absent"


def test_a_table_that_somebody_has_locked_is_unavailable_soon(pg_url: str) -> None:
    """After the two seconds of its time-out."""
    with Database(_settings(pg_url)) as database, closing(psycopg2.connect(pg_url)) as other:
        other.cursor().execute("lock table feedback in access exclusive mode")
        started = time.monotonic()
        with pytest.raises(StorageUnavailable):
            _count(database)
    assert 1.5 < time.monotonic() - started < 4


def test_a_folder_that_cannot_be_is_unavailable(tmp_path: Path) -> None:
    """The same error as for a server that is away."""
    (tmp_path / "file").touch()
    with Database(_settings(f"sqlite:///{tmp_path}/file/below/presage.db")) as database:
        with pytest.raises(StorageUnavailable):
            _count(database)
        assert database.schema_state() in {"absent", "unreachable"}


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    """Whatever it is, it is not touched."""
    file = tmp_path / "presage.db"
    file.write_bytes(b"something else " * 100)
    with Database(_settings(f"sqlite:///{file}")) as database:
        with pytest.raises(StorageUnavailable):
            _count(database)
        assert database.schema_state() == "unreachable"
    assert file.read_bytes() == b"something else " * 100


@pytest.fixture(params=["refuses", "says nothing"])
def absent_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that is not there, or that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "says nothing":
            listener.listen()
        yield f"postgresql://u:secret@127.0.0.1:{listener.getsockname()[1]}/d"


def test_a_server_that_is_away_is_unavailable_within_its_time_outs(absent_url: str) -> None:
    """Reads fail and the schema's state is known to be unknown; both within seconds."""
    with Database(_settings(absent_url)) as database:
        started = time.monotonic()
        with ThreadPoolExecutor() as threads:
            reading, state = threads.submit(_count, database), threads.submit(database.schema_state)
        assert time.monotonic() - started < 4
        assert isinstance(reading.exception(), StorageUnavailable)
        assert state.result() == "unreachable"


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that a test may hurt."""
    with running_postgres() as server:
        yield server


def test_connections_outlive_a_restart_of_the_server(own_postgres: Postgres) -> None:
    """No read fails because the pool has kept connections to a server that died."""
    with Database(_settings(own_postgres.url())) as database:
        with database.reading() as one, database.reading() as two:
            assert one.scalar(text("select 1")) == two.scalar(text("select 1"))
        own_postgres.kill()
        own_postgres.start()
        for _ in range(3):
            with database.reading() as connection:
                assert connection.scalar(text("select 1")) == 1


def test_a_server_that_stands_still_is_unavailable_and_comes_back(own_postgres: Postgres) -> None:
    """Neither its time-outs nor TCP's end the wait for a frozen server; ours do, in a statement and before one."""

    def select_number(number: int) -> int | None:
        with database.reading() as connection:
            return connection.scalar(select(literal(number)))

    def freeze_within() -> None:
        with database.reading() as connection:
            own_postgres.freeze()
            connection.execute(select(literal(1)))

    def select_again() -> None:
        select_number(2)

    with Database(_settings(own_postgres.url()), silence=0.5) as database:
        with database.reading():  # so that the pool has two
            assert select_number(0) == 0
        for fail in (freeze_within, select_again):
            started = time.monotonic()
            with pytest.raises(StorageUnavailable):
                fail()
            assert time.monotonic() - started < 4
        own_postgres.thaw()
        assert select_number(3) == 3
