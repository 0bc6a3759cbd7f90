"""Databases for tests: a real PostgreSQL and a file of SQLite, migrated by the project's own migrations.

`TEST_DATABASE_URL` names a PostgreSQL that is used instead of the wheel's; its user must be able to make databases.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import make_url

from app.config import StorageSettings
from app.storage.database import Database
from app.storage.migrations import upgrade
from tests.support.postgres import Postgres, execute, running_postgres

_numbers = count()

# The address of a server's database of that name.
Address = Callable[[str], str]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The wheel's server, shared: a test that hurts it starts its own, with `running_postgres`."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def address(request: pytest.FixtureRequest) -> Address:
    """Of databases on the server that the environment names, or else on the wheel's."""
    if named := os.environ.get("TEST_DATABASE_URL"):
        url = make_url(named).set(drivername="postgresql")
        return lambda database: url.set(database=database).render_as_string(hide_password=False)
    server: Postgres = request.getfixturevalue("postgres")
    return server.url


@pytest.fixture
def empty_pg_url(address: Address) -> Iterator[str]:
    """A database of this test's own with nothing in it."""
    with _database(address) as url:
        yield url


@pytest.fixture(scope="session")
def pg_template(address: Address) -> Iterator[str]:
    """The name of a database that was migrated once, for others to be copied from."""
    with _database(address) as url:
        upgrade(StorageSettings(database_url=SecretStr(url)))
        yield make_url(url).database or ""


@pytest.fixture
def pg_url(address: Address, pg_template: str) -> Iterator[str]:
    """A migrated database of this test's own."""
    with _database(address, template=pg_template) as url:
        yield url


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """The address of a file that does not exist, in a folder that does not."""
    return f"sqlite:///{tmp_path}/database/presage.db"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that was migrated once, for others to be copied from."""
    file = tmp_path_factory.mktemp("template") / "presage.db"
    upgrade(StorageSettings(database_url=SecretStr(f"sqlite:///{file}")))
    return file


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """A migrated file of this test's own."""
    file = tmp_path / "database" / "presage.db"
    file.parent.mkdir()
    shutil.copy(sqlite_template, file)
    return f"sqlite:///{file}"


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_settings(request: pytest.FixtureRequest, tmp_path: Path) -> StorageSettings:
    """Settings with a migrated database; the test runs once on each of the two."""
    url = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "pg_url")
    return StorageSettings(database_url=SecretStr(url), journal_dir=tmp_path / "journal")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_settings(request: pytest.FixtureRequest, tmp_path: Path) -> StorageSettings:
    """Settings with a database that was never migrated; the test runs once on each of the two."""
    url = request.getfixturevalue("empty_sqlite_url" if request.param == "sqlite" else "empty_pg_url")
    return StorageSettings(database_url=SecretStr(url), journal_dir=tmp_path / "journal")


@pytest.fixture
def database(storage_settings: StorageSettings) -> Iterator[Database]:
    """A migrated database, open; the test runs once on each of the two."""
    with Database(storage_settings) as opened:
        yield opened


@contextmanager
def _database(address: Address, template: str = "template0") -> Iterator[str]:
    name = f"presage_test_{os.getpid()}_{next(_numbers)}"
    execute(address("postgres"), f"create database {name} template {template}")
    try:
        yield address(name)
    finally:
        execute(address("postgres"), f"drop database {name} with (force)")
