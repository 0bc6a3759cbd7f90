"""Databases, as the tests of the storage have them."""

from tests.storage.conftest import (  # noqa: F401 -- fixtures
    address,
    database,
    pg_template,
    pg_url,
    postgres,
    sqlite_template,
    sqlite_url,
    storage_settings,
)
