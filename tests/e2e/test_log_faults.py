"""The ledger holds: whatever dies, every answer is in the database once, and nothing is there that was not answered."""

import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx2
import pytest
from pydantic import SecretStr

from app.config import StorageSettings
from app.storage.migrations import upgrade
from tests.support.ledger import Ledger, answers, load, rows_of
from tests.support.postgres import Postgres, running_postgres
from tests.support.server import Server, running_server
from tests.support.versions import write_classifier

ENVIRONMENT = {"DEFAULT_MODEL": "toy", "LOG_FORMAT": "json"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One quick model."""
    root = tmp_path_factory.mktemp("models")
    write_classifier(root)
    return root


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A server of this test's own that keeps what it has committed, migrated."""
    with running_postgres(durable=True) as server:
        upgrade(StorageSettings(database_url=SecretStr(server.url())))
        yield server


def _wait_until_drained(server: Server) -> None:
    deadline = time.monotonic() + 30
    while (log := server.wait_for("/health/ready", 200).json()["log"])["pending_bytes"]:
        assert time.monotonic() < deadline, log
        time.sleep(0.02)
    assert log["database"] == "up"


def test_a_server_that_is_killed_loses_nothing(models: Path, postgres: Postgres, tmp_path: Path) -> None:
    """SIGKILL in the middle of the load; the next server on the same folder brings the rest."""
    environment = {**ENVIRONMENT, "DATABASE_URL": postgres.url()}
    with running_server(models, tmp_path / "log", environment) as server, load(server) as ledger:
        answers(ledger, 200)
        server.process.kill()
        server.process.wait()
    with running_server(models, tmp_path / "log", environment) as server:
        _wait_until_drained(server)
    ledger.assert_matches(postgres.url())


def test_a_database_that_is_killed_is_caught_up_with(models: Path, postgres: Postgres, tmp_path: Path) -> None:
    """Predictions go on as if nothing had happened, and what the database missed arrives when it is back."""
    environment = {**ENVIRONMENT, "DATABASE_URL": postgres.url()}
    with running_server(models, tmp_path / "log", environment) as server:
        with load(server) as ledger:
            answers(ledger, 100)
            postgres.kill()
            answers(ledger, 300)
            assert server.wait_for("/health/ready", 200).json()["log"]["pending_bytes"] > 0
            postgres.start()
            answers(ledger, 100)
        _wait_until_drained(server)
    assert set(ledger.statuses) == {200}
    ledger.assert_matches(postgres.url())


def test_a_database_that_is_frozen_is_not_waited_for_and_not_when_the_server_stops(
    models: Path, postgres: Postgres, tmp_path: Path
) -> None:
    """It accepts and says nothing. SIGTERM meanwhile ends the server in time; the next one brings the rest."""
    environment = {**ENVIRONMENT, "DATABASE_URL": postgres.url()}
    with running_server(models, tmp_path / "log", environment) as server:
        with load(server) as ledger:
            answers(ledger, 100)
            postgres.freeze()
            frozen = time.monotonic()
            while time.monotonic() < frozen + 9:
                answers(ledger, 50)
            log = server.wait_for("/health/ready", 200).json()["log"]
            assert (log["database"], log["journal"]) == ("down", "writable")
            with server.client() as client:
                assert _metric(client, "presage_log_lag_seconds") > 6
        assert set(ledger.statuses) == {200}
        assert ledger.slowest < 1
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 20
    postgres.thaw()
    with running_server(models, tmp_path / "log", environment) as server:
        _wait_until_drained(server)
    ledger.assert_matches(postgres.url())


def test_a_server_that_starts_without_its_database_serves_and_catches_up(models: Path, tmp_path: Path) -> None:
    """It says so in the ready answer, and needs no restart."""
    with running_postgres() as postgres:
        url = postgres.url()
        postgres.stop()
        with running_server(models, tmp_path / "log", {**ENVIRONMENT, "DATABASE_URL": url}) as server:
            with load(server) as ledger:
                answers(ledger, 100)
                assert server.wait_for("/health/ready", 200).json()["log"]["database"] == "down"
                postgres.start()
                upgrade(StorageSettings(database_url=SecretStr(url)))
                answers(ledger, 100)
            _wait_until_drained(server)
        assert set(ledger.statuses) == {200}
        ledger.assert_matches(url)


def test_what_a_server_could_not_drain_before_it_stopped_is_drained_by_the_next(
    models: Path, postgres: Postgres, tmp_path: Path
) -> None:
    """SIGTERM with 50,000 rows and no database to take them."""
    environment = {**ENVIRONMENT, "DATABASE_URL": postgres.url()}
    postgres.stop()
    ids: list[UUID] = []
    with running_server(models, tmp_path / "log", environment) as server, server.client() as client:
        for _ in range(5):
            answer = client.post("/v2/batch", json={"inputs": [{"x": 3}] * 10_000})
            ids += [UUID(result["id"]) for result in answer.json()["results"]]
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 20
    postgres.start()
    with running_server(models, tmp_path / "log", environment) as server:
        _wait_until_drained(server)
    assert sorted(rows_of(postgres.url())) == sorted(ids)


def test_two_services_share_a_database_and_a_journal_folder(models: Path, postgres: Postgres, tmp_path: Path) -> None:
    """Each drains its own; one that is killed is inherited by the other while it serves."""
    environment = {**ENVIRONMENT, "DATABASE_URL": postgres.url(), "JOURNAL_DIR": str(tmp_path / "shared")}
    first = running_server(models, tmp_path / "first/log", environment)
    second = running_server(models, tmp_path / "second/log", environment)
    with first as dying, second as surviving:
        with load(dying, 2) as one, load(surviving, 2) as other:
            answers(one, 100)
            answers(other, 100)
            dying.process.kill()
            dying.process.wait()
            answers(other, 100)
        surviving.wait_for_event("segments_adopted")
        _wait_until_drained(surviving)
        both = Ledger()
        both.answered = one.answered + other.answered
        both.statuses = one.statuses + other.statuses
        both.assert_matches(postgres.url())


@pytest.mark.parametrize("policy", ["require", "best-effort"])
def test_a_full_disk_follows_the_policy_and_heals(
    models: Path, postgres: Postgres, small_disk: Path, tmp_path: Path, policy: str
) -> None:
    """`require` says 503 and is not ready; `best-effort` answers and counts. With room again, both record again."""
    postgres.stop()
    environment = {
        **ENVIRONMENT,
        "DATABASE_URL": postgres.url(),
        "JOURNAL_DIR": str(small_disk / "journal"),
        "LOG_POLICY": policy,
    }
    batch = {"inputs": [{"x": 3}] * 500}
    recorded: list[UUID] = []
    with running_server(models, tmp_path / "log", environment) as server, server.client() as client:
        while not _metric(client, "presage_log_lost_total") and server.process.poll() is None:
            answer = client.post("/v2/batch", json=batch)
            if answer.status_code != 200:
                break
            recorded += [UUID(result["id"]) for result in answer.json()["results"]]
        if policy == "require":
            assert (answer.status_code, answer.json()["code"]) == (503, "log_unavailable")
            assert server.wait_for("/health/ready", 503).json()["log"]["journal"] == "unwritable"
        else:
            assert server.wait_for("/health/ready", 200).json()["log"]["journal"] == "unwritable"
        server.wait_for("/health/live", 200)
        assert _metric(client, "presage_log_writable") == 0
        postgres.start()
        deadline = time.monotonic() + 30
        while _metric(client, "presage_log_writable") == 0:
            assert time.monotonic() < deadline, server.output()
            client.post("/v2/batch", json=batch)
        _wait_until_drained(server)
        lost = int(_metric(client, "presage_log_lost_total"))
        drained = int(_metric(client, "presage_log_drained_total"))
    rows = set(rows_of(postgres.url()))
    assert len(rows) == drained
    assert len(set(recorded) - rows) <= lost
    assert (lost > 0) == (policy == "best-effort")


def _metric(client: httpx2.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))
