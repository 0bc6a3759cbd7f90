"""Clients, keys and revocations in the database: what is written comes back, and a number says that it changed."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from sqlalchemy import exc, select

from app.storage import clients as table
from app.storage.clients import ApiKey, Client
from app.storage.database import Database
from app.storage.tables import AuditRow
from tests.support.logged import START

ALICE = Client("alice", "user", frozenset({"read", "predict:iris"}), "10/minute", START)
BATCH = Client("batch", "service", frozenset({"predict"}), None, START, START, START + timedelta(seconds=1))
KEY = ApiKey("abcdefghij12", "batch", "0" * 64, "nightly", START, START + timedelta(days=1))


def test_what_is_written_comes_back(database: Database) -> None:
    """Scopes as a set, times as instants, and the secret's hash only by itself."""
    with database.writing() as connection:
        for client in (BATCH, ALICE):
            table.add_client(connection, client, f"hash of {client.name}")
        table.add_api_key(connection, KEY)
    with database.reading() as connection:
        assert table.clients(connection) == [ALICE, BATCH]
        assert table.find_client(connection, "batch") == BATCH
        assert table.find_with_secret(connection, "alice") == (ALICE, "hash of alice")
        assert table.api_keys(connection) == table.api_keys(connection, "batch") == [KEY]
        assert table.api_keys(connection, "alice") == []
        assert table.find_api_key(connection, KEY.id) == KEY
    assert KEY.hash not in repr(KEY)


@pytest.mark.parametrize("name", ["nobody", "", "nul\0", "\ud800", "a" * 65, "Batch", "batch\n", "%", "' or 1=1 --"])
def test_what_cannot_be_is_not_found(database: Database, name: str) -> None:
    """Callers choose these texts, and PostgreSQL would refuse to look for some of them."""
    with database.writing() as connection:
        table.add_client(connection, BATCH, "hash")
    with database.reading() as connection:
        assert table.find_client(connection, name) is None
        assert table.find_with_secret(connection, name) is None
        assert table.find_api_key(connection, name) is None


def test_a_key_belongs_to_a_client_that_exists(database: Database) -> None:
    """The database itself sees to it."""
    with pytest.raises(exc.IntegrityError), database.writing() as connection:
        table.add_api_key(connection, KEY)


def test_a_change_of_a_client_leaves_its_secret(database: Database) -> None:
    """Unless another is given."""
    changed = Client("batch", "service", frozenset({"read"}), "1/day", START)
    with database.writing() as connection:
        table.add_client(connection, BATCH, "first")
        table.change_client(connection, changed)
        assert table.find_with_secret(connection, "batch") == (changed, "first")
        table.change_client(connection, BATCH, "second")
        assert table.find_with_secret(connection, "batch") == (BATCH, "second")


def test_a_revocation_lasts_until_the_later_time(database: Database) -> None:
    """And is forgotten when that has passed."""
    hours = [START + timedelta(hours=n) for n in range(4)]
    with database.writing() as connection:
        assert table.revoke_token(connection, "one", expires_at=hours[2], at=START) is None
        assert table.revoke_token(connection, "one", expires_at=hours[1], at=START) == hours[2]
        assert table.revoke_token(connection, "two", expires_at=hours[1], at=START) is None
        assert table.revoke_token(connection, "two", expires_at=hours[3], at=START) == hours[1]
        assert table.forget_revoked_tokens(connection, hours[2]) == 0
        assert table.revoked_tokens(connection) == {"one", "two"}
        assert table.forget_revoked_tokens(connection, hours[3]) == 1
        assert table.revoked_tokens(connection) == {"two"}


def test_changes_come_one_after_the_other(database: Database) -> None:
    """None is lost, each is counted and on record, though all read before they write."""
    with database.writing() as connection:
        table.add_client(connection, BATCH, "0")
    together = Barrier(4)

    def change(number: int) -> None:
        together.wait()
        for _ in range(5):
            with table.changing(database) as (connection, now):
                found = table.find_with_secret(connection, "batch")
                assert found is not None
                known = int(found[1])
                table.change_client(connection, BATCH, str(known + 1))
                table.record(connection, "test", str(number), {"n": known}, None, by="tester", at=now)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(change, range(4)))
    with database.reading() as connection:
        assert table.find_with_secret(connection, "batch") == (BATCH, "20")
        assert table.generation(connection.connection) == 20
        assert sorted(before["n"] for before in connection.scalars(select(AuditRow.before))) == list(range(20))


def test_a_change_that_fails_leaves_no_trace(database: Database) -> None:
    """Neither in the tables, nor on record, nor in the number."""

    def fail() -> None:
        with table.changing(database) as (connection, now):
            table.add_client(connection, BATCH, "hash")
            table.record(connection, "test", "batch", None, None, by="tester", at=now)
            raise KeyError("ours")

    with pytest.raises(KeyError):
        fail()
    with database.reading() as connection:
        assert table.clients(connection) == []
        assert table.generation(connection.connection) == 0
        assert connection.scalars(select(AuditRow.id)).all() == []
