"""Who may call stands in the database: its fixtures are those of the storage."""

from tests.storage.conftest import (
    address,
    database,
    empty_sqlite_url,
    pg_template,
    pg_url,
    postgres,
    sqlite_template,
    sqlite_url,
    storage_settings,
)

__all__ = [
    "address",
    "database",
    "empty_sqlite_url",
    "pg_template",
    "pg_url",
    "postgres",
    "sqlite_template",
    "sqlite_url",
    "storage_settings",
]
