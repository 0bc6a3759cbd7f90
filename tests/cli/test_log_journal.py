"""`log lag`, `verify`, `drain` and `erase`: the journal, for operators."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from app.cli.log import log
from app.config import StorageSettings
from app.inference.identifiers import new_ids
from app.manifest import LogRules
from app.pipelines.base import Prediction
from app.storage.database import Database
from app.storage.journal import Journal, segment_paths
from app.storage.migrations import upgrade
from app.storage.records import Origin, Recorder, timestamp
from tests.support.manifests import NUMBER, make_manifest

RECORDER = Recorder(make_manifest(NUMBER), LogRules(), b"")


@pytest.fixture
def settings(tmp_path: Path) -> StorageSettings:
    """A migrated file of SQLite, and the journal of a dead process with rows of two callers."""
    found = StorageSettings(database_url=SecretStr(f"sqlite:///{tmp_path}/p.db"), journal_dir=tmp_path / "journal")
    upgrade(found)
    left = Journal(found.journal_dir, max_bytes=1 << 30)
    for principal in ("ada", "grace"):
        origin = Origin("request", principal, "v2")
        rows = [(i, {NUMBER.name: 1.0}, Prediction("yes")) for i in new_ids(10)]
        left.append(b"".join(RECORDER.frames(rows, origin, 1.0, timestamp())))
    left.close()
    return found


def _run(settings: StorageSettings, *arguments: str) -> Result:
    environment = {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "JOURNAL_DIR": str(settings.journal_dir),
        "LOG_FORMAT": "json",
    }
    return CliRunner().invoke(log, arguments, env=environment)


def _principals(settings: StorageSettings) -> set[str]:
    with Database(settings) as database:
        connection = database.writer_connection()
        cursor = connection.cursor()
        cursor.execute("select principal from predictions")
        found = {row[0] for row in cursor.fetchall()}
        connection.close()
    return found


def test_lag_says_what_the_database_does_not_have(settings: StorageSettings) -> None:
    """Records, bytes, and the age of the oldest."""
    assert _run(settings, "lag").stdout.startswith("20 records in 1 segments, ")


def test_drain_brings_what_dead_processes_have_left(settings: StorageSettings) -> None:
    """And the journal is empty then."""
    ended = _run(settings, "drain")
    assert (ended.exit_code, ended.stdout) == (0, "drained 20 records\n")
    assert segment_paths(settings.journal_dir) == []
    assert _principals(settings) == {"ada", "grace"}


def test_drain_says_what_it_left_to_a_process_that_lives(settings: StorageSettings) -> None:
    """A service drains its own segments; who drains by hand after its end learns that it has not ended yet."""
    lives = Journal(settings.journal_dir, max_bytes=1 << 30)
    rows = [(i, {NUMBER.name: 1.0}, Prediction("yes")) for i in new_ids(3)]
    lives.append(b"".join(RECORDER.frames(rows, Origin("request", "ada", "v2"), 1.0, timestamp())))
    ended = _run(settings, "drain")
    lives.close()
    assert ended.exit_code == 0
    assert ended.stdout == "drained 20 records; 3 more belong to processes that live, which drain them themselves\n"


def test_verify_finds_a_damaged_record(settings: StorageSettings) -> None:
    """With an exit code for scripts."""
    assert _run(settings, "verify").exit_code == 0
    path = segment_paths(settings.journal_dir)[0]
    path.write_bytes(path.read_bytes().replace(b"yes", b"YES", 1))
    ended = _run(settings, "verify")
    assert ended.exit_code == 1
    assert "19 records are whole, 1 damaged; 0 dead letters" in ended.output
    assert "its process is dead" in ended.output


def test_erase_reaches_the_journal(settings: StorageSettings) -> None:
    """What a caller's rows were only on their way is in the database first, and then gone from everywhere."""
    ended = _run(settings, "erase", "--subject", "ada", "--yes")
    assert ended.stdout == "deleted 10 predictions and 0 feedback, and 0 dead letters\n"
    assert _principals(settings) == {"grace"}
    assert segment_paths(settings.journal_dir) == []


def test_erase_reaches_dead_letters(settings: StorageSettings) -> None:
    """A record that no database would take is a record of the caller all the same."""
    path = segment_paths(settings.journal_dir)[0]
    path.write_bytes(path.read_bytes().replace(b'"at":"2', b'"at":2', 1))  # no checksum fits any more
    ended = _run(settings, "erase", "--subject", "ada", "--yes")
    assert ended.stdout == "deleted 9 predictions and 0 feedback, and 1 dead letters\n"
    assert (settings.journal_dir / "dead-letters.jsonl").read_text() == ""
