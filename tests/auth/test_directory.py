"""The directory knows a change soon, forgets nothing while the database is away, and never holds the loop."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy import text

from app.auth.clients import Clients
from app.auth.directory import Directory, KnownClient, Snapshot, find_client
from app.config import StorageSettings
from app.errors import StorageUnavailable
from app.storage import clients as table
from app.storage.database import Database
from app.storage.migrations import upgrade
from tests.support.postgres import Postgres, running_postgres
from tests.support.server import free_port

# Ten times what it takes on a machine that is busy.
_HANG_SECONDS = 20.0


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A migrated server that a test may hurt; what it has committed survives."""
    with running_postgres(durable=True) as server:
        upgrade(_settings(server.url()))
        yield server


def _settings(url: str) -> StorageSettings:
    return StorageSettings(database_url=SecretStr(url))


def _seen(lines: Sequence[Mapping[str, object]]) -> list[str]:
    """The events that an operator would see."""
    return [str(line["event"]) for line in lines if line["log_level"] != "debug"]


async def _until(true: Callable[[], bool]) -> float:
    """How many seconds it took to become true."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < _HANG_SECONDS
        await asyncio.sleep(0.005)
    return time.monotonic() - started


async def _lag(seconds: Awaitable[object]) -> float:
    """The longest that the loop was held meanwhile."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - started)

    watcher = asyncio.create_task(watch())
    await seconds
    watcher.cancel()
    with suppress(asyncio.CancelledError):
        await watcher
    return longest


def test_everything_is_there_when_it_opens(database: Database) -> None:
    """In the form that a request needs, and without the hashes of secrets."""
    clients = Clients(database)
    expires = datetime.now(UTC) + timedelta(days=1)
    clients.add("ann", by="root", kind="user", scopes=["predict:iris", "read"], plan="5/minute")
    clients.add("batch", by="root")
    disabled = clients.disable("batch", by="root")
    keys = [clients.add_key("ann", by="root", expires_at=at) for at in (None, expires)]
    clients.revoke_key(keys[0].split("_")[1], by="root")
    clients.revoke_token("jti-1", expires, by="root")

    async def run() -> None:
        async with Directory(database) as directory:
            snapshot = directory.snapshot
            assert (directory.state, directory.number) == ("current", 1)
            assert directory.confirmed_at is not None
        ann, batch = snapshot.clients["ann"], snapshot.clients["batch"]
        assert ann == KnownClient("ann", "user", frozenset({"predict:iris", "read"}), "5/minute", False, 0.0)  # noqa: FBT003
        assert disabled.tokens_not_before is not None
        assert (batch.disabled, batch.tokens_not_before) == (True, disabled.tokens_not_before.timestamp())
        first, second = (snapshot.api_keys[key.split("_")[1]] for key in keys)
        assert (first.client, first.expires_at, first.revoked) == ("ann", float("inf"), True)
        assert (second.expires_at, second.revoked) == (expires.timestamp(), False)
        assert snapshot.revoked == {"jti-1"}
        assert "argon2" not in repr(snapshot)
        assert first.hash not in repr(snapshot)

    asyncio.run(run())


def test_a_change_is_known_in_another_process_within_a_second(
    database: Database, storage_settings: StorageSettings
) -> None:
    """Here, another directory with connections of its own; each change makes another snapshot and number."""

    async def run() -> None:
        with Database(storage_settings) as other:
            clients = Clients(other)
            async with Directory(database) as directory:
                clients.add("batch", by="root")
                seconds = [await _until(lambda: "batch" in directory.snapshot.clients)]
                number = directory.number
                clients.disable("batch", by="root")
                seconds.append(await _until(lambda: directory.snapshot.clients["batch"].disabled))
                assert directory.number > number
                clients.revoke_token("jti-1", datetime.now(UTC), by="root")
                seconds.append(await _until(lambda: "jti-1" in directory.snapshot.revoked))
                assert sorted(seconds)[1] < 1

    asyncio.run(run())


def test_an_administrator_need_not_wait_for_the_next_look(database: Database) -> None:
    """A change that was made before is in the snapshot afterwards."""

    async def run() -> None:
        async with Directory(database, poll=_HANG_SECONDS * 3) as directory:
            for number in range(5):
                Clients(database).add(f"client-{number}", by="root")
                assert await directory.refreshed(_HANG_SECONDS)
                assert f"client-{number}" in directory.snapshot.clients

    asyncio.run(run())


def test_nothing_new_is_no_new_snapshot(database: Database) -> None:
    """What is remembered of it stays remembered, however often everything is read."""

    async def run() -> None:
        async with Directory(database, reread=0.0) as directory:
            snapshot, number = directory.snapshot, directory.number
            for _ in range(5):
                assert await directory.refreshed(_HANG_SECONDS)
            assert directory.snapshot is snapshot
            assert directory.number == number

    asyncio.run(run())


def test_what_was_changed_by_hand_is_known_after_a_while(database: Database) -> None:
    """Nobody has counted it, so it is found when everything is read again."""
    Clients(database).add("batch", by="root")

    async def run() -> None:
        async with Directory(database, poll=0.01, reread=0.2) as directory:
            with database.writing() as connection:
                connection.execute(text("update clients set plan = '1/day'"))
            await _until(lambda: directory.snapshot.clients["batch"].plan == "1/day")

    asyncio.run(run())


def test_expired_revocations_are_deleted_after_an_hours_grace(database: Database) -> None:
    """Two directories at once do no harm."""
    clients, now = Clients(database), datetime.now(UTC)
    for name, hours in (("old", -2), ("just", -0.5), ("later", 1)):
        clients.revoke_token(name, now + timedelta(hours=hours), by="root")

    def left() -> frozenset[str]:
        with database.reading() as connection:
            return table.revoked_tokens(connection)

    async def run() -> None:
        async with Directory(database, poll=0.01, clean=0.02), Directory(database, poll=0.01, clean=0.02):
            await _until(lambda: left() == {"just", "later"})

    asyncio.run(run())


def test_a_database_without_the_tables_is_waited_for(empty_sqlite_url: str) -> None:
    """No file is made by looking; one line says so, and one that it is over."""
    file = Path(empty_sqlite_url.removeprefix("sqlite:///"))

    async def run() -> list[str]:
        with structlog.testing.capture_logs() as lines, Database(_settings(empty_sqlite_url)) as database:
            async with Directory(database) as directory:
                assert (directory.state, directory.number, directory.confirmed_at) == ("never", 0, None)
                assert directory.snapshot == Snapshot()
                for _ in range(3):
                    assert not await directory.refreshed(_HANG_SECONDS)
                assert not await asyncio.to_thread(file.exists)
                upgrade(_settings(empty_sqlite_url))
                Clients(database).add("batch", by="root")
                await _until(lambda: "batch" in directory.snapshot.clients)
                assert directory.state == "current"
        return _seen(lines)

    assert asyncio.run(run()) == ["directory_unreadable", "directory_current"]


def test_a_server_that_is_away_delays_nothing() -> None:
    """Opening and closing take their second at most, and looking is no line a time."""
    url = f"postgresql://u:secret@127.0.0.1:{free_port()}/d"

    async def run() -> list[str]:
        with structlog.testing.capture_logs() as lines, Database(_settings(url)) as database:
            async with Directory(database) as directory:
                assert directory.state == "never"
                for _ in range(3):
                    assert not await directory.refreshed(_HANG_SECONDS)
        return _seen(lines)

    started = time.monotonic()
    assert asyncio.run(run()) == ["directory_unreadable"]
    assert time.monotonic() - started < _HANG_SECONDS


def test_while_a_server_is_down_the_last_snapshot_stands(own_postgres: Postgres) -> None:
    """Killed, and started again: it heals by itself, with one line for each change."""

    async def run() -> list[str]:
        with structlog.testing.capture_logs() as lines, Database(_settings(own_postgres.url())) as database:
            Clients(database).add("batch", by="root")
            async with Directory(database) as directory:
                snapshot = directory.snapshot
                own_postgres.kill()
                await _until(lambda: directory.state == "stale")
                assert not await directory.refreshed(_HANG_SECONDS)
                confirmed = directory.confirmed_at
                assert directory.snapshot is snapshot
                assert "batch" in snapshot.clients
                own_postgres.start()
                await _until(lambda: directory.state == "current")
                assert confirmed is not None
                assert directory.confirmed_at is not None
                assert directory.confirmed_at > confirmed
                assert directory.snapshot is snapshot
        return [event for event in _seen(lines) if event != "storage_unavailable"]

    assert asyncio.run(run()) == ["directory_current", "directory_unreadable", "directory_current"]


def test_a_server_that_stands_still_holds_nobody(own_postgres: Postgres) -> None:
    """Frozen: the loop runs on, the snapshot stands, asking and leaving are bounded; thawed, it is current again."""

    async def frozen(directory: Directory) -> None:
        own_postgres.freeze()
        await _until(lambda: directory.state == "stale")
        assert not await directory.refreshed(0.2)
        assert "batch" in directory.snapshot.clients

    async def run() -> float:
        # Nobody else ends the wait.
        with Database(_settings(own_postgres.url()), silence=_HANG_SECONDS * 3) as database:
            Clients(database).add("batch", by="root")
            async with Directory(database) as directory:
                assert await _lag(frozen(directory)) < 1
                own_postgres.thaw()
                await _until(lambda: directory.state == "current")
                await frozen(directory)
                leaving = time.monotonic()
        left = time.monotonic() - leaving
        own_postgres.thaw()
        return left

    assert asyncio.run(run()) < _HANG_SECONDS


def test_opening_on_a_server_that_stands_still_takes_a_second(own_postgres: Postgres) -> None:
    """The service starts without it."""

    async def run() -> float:
        with Database(_settings(own_postgres.url()), silence=0.5) as database:
            own_postgres.freeze()
            started = time.monotonic()
            async with Directory(database) as directory:
                opened = time.monotonic() - started
                assert directory.state == "never"
                own_postgres.thaw()
                await _until(lambda: directory.state == "current")
        return opened

    assert asyncio.run(run()) < 3


def test_a_client_is_found_as_it_is_now(database: Database) -> None:
    """With the hash of its secret; a directory that is behind has no say."""
    clients = Clients(database)
    assert find_client(database, "batch") is None
    clients.add("batch", by="root")
    clients.disable("batch", by="root")
    found = find_client(database, "batch")
    assert found is not None
    assert (found[0].name, found[0].disabled_at is not None) == ("batch", True)
    assert found[1].startswith("$argon2id$")
    for name in ("nul\0", "\ud800", ""):
        assert find_client(database, name) is None


def test_a_client_is_not_found_without_the_database() -> None:
    """Which is another answer than that there is none."""
    with (
        Database(_settings(f"postgresql://u@127.0.0.1:{free_port()}/d")) as database,
        pytest.raises(StorageUnavailable),
    ):
        find_client(database, "batch")
