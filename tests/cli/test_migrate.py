"""`migrate`, and `serve --migrate`: what the person at the terminal sees, with a database and without."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from app.cli.migrate import migrate
from app.config import StorageSettings
from app.errors import MigrationFailed
from app.storage.database import Database
from tests.support.demo import MODULES
from tests.support.server import ROOT, clean_environment, free_port, running_server

REVISIONS = {"0001": "predictions, feedback, audit", "0002": "clients, keys, revocations"}


def _migrate(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "app", "migrate"],
        cwd=ROOT,
        env=clean_environment(DATABASE_URL=url),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_new_database_gets_its_tables_once(tmp_path: Path) -> None:
    """A line for each revision; the second time there is nothing to do."""
    url = f"sqlite:///{tmp_path}/new/presage.db"
    first, second = _migrate(url), _migrate(url)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == "".join(f"presage: database: applied {r}, {title}\n" for r, title in REVISIONS.items())
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout == "presage: database: nothing to migrate\n"


def test_a_database_that_is_away_is_one_line() -> None:
    """With the reason, without the password, exit code 1."""
    ended = _migrate(f"postgresql://u:secret@127.0.0.1:{free_port()}/d")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("presage: ")
    assert ended.stderr.endswith("Connection refused\n")
    assert ended.stderr.count("\n") == 1
    assert "secret" not in ended.stderr


def test_a_file_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """The same for SQLite."""
    (tmp_path / "file").touch()
    ended = CliRunner().invoke(migrate, env={"DATABASE_URL": f"sqlite:///{tmp_path}/file/presage.db"})
    assert isinstance(ended.exception, MigrationFailed)
    assert str(ended.exception).endswith(("Not a directory", "File exists"))


@pytest.mark.parametrize("command", ["migrate", "serve"])
def test_an_address_that_cannot_be_used_ends_the_command(command: str) -> None:
    """The variable is named; the value is not repeated."""
    ended = subprocess.run(
        [sys.executable, "-m", "app", command],
        cwd=ROOT,
        env=clean_environment(DATABASE_URL="mysql://u:secret@h/d", PORT=str(free_port())),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == "presage: invalid settings\n  DATABASE_URL: must begin with sqlite:/// or postgresql://\n"


def test_a_service_migrates_before_it_serves(models_dir: Path, tmp_path: Path) -> None:
    """What `make run` and the container do."""
    url = f"sqlite:///{tmp_path}/new/presage.db"
    environment = {"MODEL_MODULES": MODULES, "LOG_FORMAT": "json", "DATABASE_URL": url}
    with running_server(models_dir, tmp_path / "log", environment, arguments=["--migrate"]) as server:
        assert [event["revision"] for event in server.events("database_migrated")] == list(REVISIONS)
        assert "alembic" not in server.output()
    with Database(StorageSettings(database_url=SecretStr(url))) as database:
        assert database.schema_state() == "current"


def test_a_service_serves_without_its_database(models_dir: Path, tmp_path: Path) -> None:
    """It says so in a line, and becomes ready."""
    url = f"postgresql://u:secret@127.0.0.1:{free_port()}/d"
    environment = {"MODEL_MODULES": MODULES, "LOG_FORMAT": "json", "DATABASE_URL": url}
    with running_server(models_dir, tmp_path / "log", environment, arguments=["--migrate"]) as server:
        (event,) = server.events("database_not_migrated")
        assert event["reason"].endswith("Connection refused")
        with server.client() as client:
            assert client.post("/predict", json={"text": "I love this product"}).status_code == 200
        assert "secret" not in server.output()
