"""`log`: the log as a file, whole and in constant memory; and what must go goes."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from app.cli.log import log
from app.config import StorageSettings
from app.errors import OperatorError
from app.storage import queries
from app.storage.database import Database
from app.storage.migrations import upgrade
from tests.support.logged import START, add, add_feedback, add_many, failed_row, identifier, row
from tests.support.postgres import running_postgres
from tests.support.server import ROOT, clean_environment

MANY = 80_000


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a database with 80,000 predictions."""
    if request.param == "sqlite":
        yield _filled(f"sqlite:///{tmp_path_factory.mktemp('large')}/presage.db")
    else:
        with running_postgres() as server:
            yield _filled(server.url())


def _filled(url: str) -> str:
    with _migrated(url) as database:
        for first in range(0, MANY, 40_000):
            add_many(database, 40_000, first=first)
    return url


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The address of a database with five predictions, two of them with feedback."""
    url = f"sqlite:///{tmp_path}/presage.db"
    with _migrated(url) as database:
        add(database, *(row(n, version=n % 2 + 1, inputs={"x": '=1+1,"é\n'}) for n in range(4)), failed_row(4))
        add_feedback(database, identifier(0), "no")
        add_feedback(database, identifier(1), "yes", revisions=3, principal="alice")
    return url


def test_an_export_of_many_takes_no_more_memory_than_one_of_few(large: str, tmp_path: Path) -> None:
    """Every line is there, in order; and the process is not larger for it."""
    few, small = _export(large, tmp_path / "few", "--until", "2026-01-01T00:00:02Z")
    many, whole = _export(large, tmp_path / "many")
    assert (small, whole) == (2_000, MANY)
    assert many - few < 12 << 20
    with (tmp_path / "many").open() as lines:
        assert all(json.loads(line)["inputs"] == {"x": place} for place, line in enumerate(lines))


def test_a_line_is_an_object_with_times_of_iso(url: str) -> None:
    """As `GET /v2/predictions` shows it; nulls are there, so that every line has the same members."""
    first, _, _, _, failed = map(json.loads, _run(url, "export").stdout.splitlines())
    assert first == {
        "id": str(identifier(0)),
        "time": "2026-01-01T00:00:00Z",
        "request_id": "request-1",
        "principal": "anonymous",
        "model": "toy",
        "version": 1,
        "digest": "0" * 64,
        "protocol": "v2",
        "inputs": {"x": '=1+1,"é\n'},
        "prediction": "yes",
        "probabilities": {"no": 0.25, "yes": 0.75},
        "latency_ms": 1.5,
        "cached": False,
        "error": None,
        "feedback": {
            "truth": "no",
            "time": "2026-01-01T00:00:00Z",
            "received_at": "2026-01-01T00:00:00Z",
            "principal": "anonymous",
            "revisions": 0,
        },
    }
    assert failed.keys() == first.keys()
    assert (failed["prediction"], failed["error"], failed["feedback"]) == (None, "model_failed", None)


def test_a_csv_file_has_a_row_for_each_with_json_where_it_is_nested(url: str) -> None:
    """Line breaks, quotes and what a spreadsheet may take for a formula come back as they went in."""
    rows = list(csv.DictReader(io.StringIO(_run(url, "export", "--format", "csv").stdout, newline="")))
    assert [r["id"] for r in rows] == [str(identifier(n)) for n in range(5)]
    assert json.loads(rows[0]["inputs"]) == {"x": '=1+1,"é\n'}
    assert (json.loads(rows[0]["prediction"]), rows[0]["label"], rows[0]["cached"]) == ("yes", "yes", "false")
    assert (rows[1]["truth"], rows[1]["truth_time"], rows[1]["truth_revisions"]) == (
        '"yes"',
        "2026-01-01T00:00:00Z",
        "3",
    )
    assert (rows[4]["error"], rows[4]["prediction"], rows[4]["truth"]) == ("model_failed", "", "")


def test_the_filters_are_options(url: str) -> None:
    """Times without a zone are of UTC."""

    def count(*options: object) -> int:
        return len(_run(url, "export", *options).stdout.splitlines())

    assert count("--model", "toy", "--version", 2) == 2
    assert count("--model", "none") == 0
    assert count("--label", "yes") == 4
    assert count("--since", "2026-01-01", "--until", "2026-01-01T00:00:00.003Z") == 3
    assert count("--since", "2026-01-01T01:00:00.002+01:00") == 3
    assert count("--until", "2026-01-01") == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--since", "yesterday"), "write a time as 2026-01-31"),
        (("--format", "parquet"), "needs an --output"),
        (("--format", "xlsx"), "is not one of"),
    ],
)
def test_options_that_make_no_sense(url: str, options: tuple[object, ...], said: str) -> None:
    """Are refused before anything is read."""
    result = _invoke(url, "export", *options)
    assert result.exit_code == 2
    assert said in result.output


def test_a_file_has_its_name_only_once_it_is_whole(url: str, tmp_path: Path) -> None:
    """What stood there before stands there until then, and nothing else is left behind."""
    target = tmp_path / "out" / "log.jsonl"
    target.parent.mkdir()
    target.write_text("before")
    failed = _invoke("postgresql://nobody@127.0.0.1:1/nothing", "export", "--output", target)
    assert isinstance(failed.exception, OperatorError)
    assert "python -m app migrate" in str(failed.exception)
    assert target.read_text() == "before"
    _run(url, "export", "--output", target)
    assert len(target.read_text().splitlines()) == 5
    assert list(target.parent.iterdir()) == [target]


def test_progress_is_shown_when_it_is_asked_for(url: str) -> None:
    """On standard error; what is exported is untouched by it."""
    result = _run(url, "export", "--progress")
    assert len(result.stdout.splitlines()) == 5
    assert result.stderr.endswith("[##############################] 100%  5 predictions\n")
    assert not _run(url, "export").stderr


def test_parquet_without_its_library_says_what_to_install(url: str, tmp_path: Path) -> None:
    """The service does not need it, so it is not among the requirements; here a module stands in its way."""
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent/pyarrow.py").write_text("raise ImportError('not installed')")
    target = tmp_path / "log.parquet"
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "app",
            "log",
            "export",
            "--format",
            "parquet",
            "--output",
            str(target),
        ],
        cwd=ROOT,
        env=clean_environment(DATABASE_URL=url, PYTHONPATH=str(tmp_path / "absent")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "pip install pyarrow" in ended.stderr
    assert not target.exists()


def test_parquet_has_the_columns_of_csv(url: str, tmp_path: Path) -> None:
    """Times are times."""
    parquet: Any = import_module("pyarrow.parquet")
    _run(url, "export", "--format", "parquet", "--output", tmp_path / "log.parquet")
    rows = parquet.read_table(tmp_path / "log.parquet").to_pylist()
    assert [r["id"] for r in rows] == [str(identifier(n)) for n in range(5)]
    assert (rows[0]["time"], rows[1]["truth"], rows[1]["truth_revisions"], rows[2]["truth"]) == (
        START,
        '"yes"',
        3,
        None,
    )


def test_retention_by_the_setting_and_by_a_models_own_rules(url: str, tmp_path: Path) -> None:
    """A model whose rules cannot be read is left alone: what is deleted is gone."""
    now = int((datetime.now(UTC) - START).total_seconds() * 1000)
    with Database(StorageSettings(database_url=SecretStr(url))) as database:
        for number, model in enumerate(("kept", "broken", "fresh")):
            add(database, row(1, number + 1, model=model), row(now, number + 1, model=model))
    for model, rules in (("kept", '{"retention_days": 0}'), ("broken", "{")):
        folder = tmp_path / "models" / model
        folder.mkdir(parents=True)
        (folder / "log.json").write_text(rules)
    environment = {"MODELS_DIR": str(tmp_path / "models"), "LOG_RETENTION_DAYS": "1"}
    result = _run(url, "retention", environment=environment)
    assert result.stdout == "deleted 6 predictions and 2 feedback\n"
    assert "broken is left alone" in result.stderr
    left = [json.loads(line)["model"] for line in _run(url, "export").stdout.splitlines()]
    assert sorted(left) == ["broken", "broken", "fresh", "kept", "kept"]
    assert _run(url, "retention").stdout == "deleted 0 predictions and 0 feedback\n"


def test_a_caller_is_erased_when_that_is_confirmed(url: str) -> None:
    """Its predictions, feedback on them, and the feedback that it gave."""
    refused = _invoke(url, "erase", "--subject", "anonymous", given="n\n")
    assert refused.exit_code == 1
    assert len(_run(url, "export").stdout.splitlines()) == 5
    assert (
        _run(url, "erase", "--subject", "alice", "--yes").stdout
        == "deleted 0 predictions and 1 feedback, and 0 dead letters\n"
    )
    assert (
        _run(url, "erase", "--subject", "anonymous", "--yes").stdout
        == "deleted 5 predictions and 1 feedback, and 0 dead letters\n"
    )
    with Database(StorageSettings(database_url=SecretStr(url))) as database, database.reading() as connection:
        assert queries.span(queries.on(connection), queries.Filters()) is None


def _migrated(url: str) -> Database:
    storage = StorageSettings(database_url=SecretStr(url))
    upgrade(storage)
    return Database(storage)


def _invoke(
    url: str, *arguments: object, environment: Mapping[str, str] | None = None, given: str | None = None
) -> Result:
    settings = {"DATABASE_URL": url, "JOURNAL_DIR": "/nonexistent/journal", **(environment or {})}
    return CliRunner().invoke(log, [str(a) for a in arguments], env=settings, input=given)


def _run(url: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Result:
    result = _invoke(url, *arguments, environment=environment)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def _export(url: str, target: Path, *options: str) -> tuple[int, int]:
    """Peak memory in bytes, and the number of lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "log", "export", "--output", str(target), *options],
        cwd=ROOT,
        env=clean_environment(DATABASE_URL=url),
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    with target.open("rb") as lines:
        return usage.ru_maxrss * 1024, sum(1 for _ in lines)
