"""`replay`: a window of the log is asked again, and the report says what would have come out otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from app.cli.replay import replay
from app.config import StorageSettings
from app.errors import OperatorError
from app.storage.database import Database
from app.storage.migrations import upgrade
from tests.support.logged import failed_row, row
from tests.support.releases import MODULES, answered, fill, load, write_line, write_pair

START = "2026-01-01"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`toy` 1 and 2, which differ from 8 to 10; 20 answers of 1, then one that failed, a hash, and a refused one."""
    folder = tmp_path_factory.mktemp("replay")
    write_pair(folder / "models", second=8.0)
    rows = answered(load(folder / "models"), range(20))
    rows += [
        failed_row(100, inputs={"x": 1.0}),
        row(101, inputs={"x": "hmac-sha256:" + "0" * 64}),
        row(102, inputs={"x": 1.0, "y": 1.0}),
        row(200, version=2, inputs={"x": 1.0}, output="small", label="small", probabilities=None),
    ]
    _fill(folder, rows, ["small"] * 10 + ["big"] * 10)
    return folder


def _fill(folder: Path, rows: Any, truths: Any = ()) -> None:
    storage = StorageSettings(database_url=SecretStr(f"sqlite:///{folder}/presage.db"))
    upgrade(storage)
    with Database(storage) as database:
        fill(database, rows, truths)


def _invoke(folder: Path, *arguments: str) -> Result:
    environment = {
        "MODELS_DIR": f"{folder}/models",
        "DATABASE_URL": f"sqlite:///{folder}/presage.db",
        "MODEL_MODULES": ",".join(MODULES),
        "COMPILE": "off",
    }
    return CliRunner().invoke(replay, ["--model", "toy", *arguments], env=environment)


def _run(folder: Path, *arguments: str) -> str:
    result = _invoke(folder, "--from", START, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_the_report_counts_every_row_once(folder: Path) -> None:
    """As a table for people."""
    report = _run(folder, "--version", "2")
    lines = [" ".join(line.split()) for line in report.splitlines()]
    assert lines[0] == "toy 2, asked again what was logged"
    counts = ["rows 24", "not all inputs kept 1", "failed then 1", "refused 1", "failed 0", "compared 21", "equal 19"]
    assert lines[3:10] == counts
    assert "small big 2" in lines
    assert lines[-2].startswith("accuracy on 20 rows with feedback: 1.0000 (0.8389 to 1.0000) then, 0.9000 (")
    assert lines[-1] == "better on 0, worse on 2 of them (p = 0.5)"


def test_the_report_is_json_for_programs(folder: Path) -> None:
    """The same figures; a window, and what one version answered, leave out the rest."""
    found = json.loads(_run(folder, "--version", "champion", "--until", "2026-01-01T00:00:00.020Z", "--json"))
    assert (found["model"], found["version"], found["rows"], found["equal"]) == ("toy", 1, 20, 20)
    assert json.loads(_run(folder, "--version", "1", "--against", "2", "--json"))["rows"] == 1


def test_the_rows_that_differ_are_a_file(folder: Path, tmp_path: Path) -> None:
    """Which they are, what came out then, and what does now."""
    file = tmp_path / "rows.jsonl"
    _run(folder, "--version", "2", "--rows", str(file))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["was"]["prediction"], row["is"].get("prediction")) for row in rows[:2]] == [("small", "big")] * 2
    assert rows[0]["is"]["probabilities"]["big"] > 0.5
    assert rows[0]["was"]["version"] == 1
    assert [row["is"].get("error") for row in rows] == [None, None, "unknown_field"]
    assert len(rows[0]["id"]) == 36


def test_a_regression_has_differences_of_numbers(tmp_path: Path) -> None:
    """And errors instead of an accuracy."""
    for version, factor in ((1, 10.0), (2, 11.0)):
        write_line(tmp_path / "models", version, factor)
    _fill(tmp_path, answered(load(tmp_path / "models"), range(10)), [10 * x for x in range(10)])
    report = _run(tmp_path, "--version", "2")
    assert "number, difference" in report
    assert "mean absolute error on 10 rows with feedback" in report
    assert " then, 4.5 now\n" in report


def test_an_empty_window_is_no_error(folder: Path) -> None:
    """There is nothing to say of it."""
    report = _run(folder, "--version", "2", "--until", START)
    assert "rows                 0" in report
    assert report.splitlines()[-1] == "no feedback on these rows"


def test_progress_is_shown_where_it_is_wanted(folder: Path) -> None:
    """On standard error."""
    result = _invoke(folder, "--from", START, "--version", "2", "--progress")
    assert "] 100%  24 predictions" in result.stderr
    assert "%" not in _invoke(folder, "--from", START, "--version", "2").stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--from", START, "--version", "9"), "toy has no such version; versions: 1, 2"),
        (("--from", START, "--version", "2", "--rows", "/nowhere/rows"), "/nowhere/rows: No such file or directory"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, arguments: tuple[str, ...], told: str) -> None:
    """In one line."""
    result = _invoke(folder, *arguments)
    assert isinstance(result.exception, OperatorError)
    assert str(result.exception) == told


def test_a_window_needs_a_beginning(folder: Path) -> None:
    """A whole log is rarely meant; and a time is one."""
    assert _invoke(folder, "--version", "2").exit_code == 2
    assert _invoke(folder, "--from", "yesterday", "--version", "2").exit_code == 2


def test_without_a_database_it_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    """The tables may be missing."""
    (tmp_path / "models").symlink_to(folder / "models")
    result = _invoke(tmp_path, "--from", START, "--version", "2")
    assert "python -m app migrate" in str(result.exception)
