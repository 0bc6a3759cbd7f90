"""The log brings every record into the database once, whatever happens to the database meanwhile."""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.config import StorageSettings
from app.errors import FieldError, LogUnavailable
from app.inference.identifiers import new_ids
from app.manifest import LogRules
from app.pipelines.base import Prediction
from app.storage.database import Database
from app.storage.drain import DEAD_LETTERS
from app.storage.journal import KEPT_BYTES, Journal, segment_paths
from app.storage.lines import frame, unchecked_payloads
from app.storage.prediction_log import PredictionLog
from app.storage.records import Origin, Recorder, timestamp
from app.storage.writer import WRITERS
from app.telemetry.metrics import Metrics
from tests.support.manifests import GAP, NUMBER, TEXT, make_manifest

RECORDER = Recorder(make_manifest(NUMBER), LogRules(), b"")
ORIGIN = Origin("request-1", "anonymous", "v2")


def _frames(ids: list[str], value: float = 1.0) -> bytes:
    outcome = Prediction("yes", {"no": 0.25, "yes": 0.75})
    return b"".join(RECORDER.frames([(i, {NUMBER.name: value}, outcome) for i in ids], ORIGIN, 1.5, timestamp()))


def _run(
    settings: StorageSettings, work: Callable[[PredictionLog], Awaitable[Any]], metrics: Metrics | None = None
) -> Any:
    """Do `work` with an open log; leaving drains it."""

    async def run() -> Any:
        with Database(settings) as database:
            async with PredictionLog(settings, database, metrics or Metrics()) as log:
                return await work(log)

    return asyncio.run(run())


def _ids(settings: StorageSettings) -> list[str]:
    """Every id in the database, as often as it is there."""
    with Database(settings) as database:
        connection = database.writer_connection()
        cursor = connection.cursor()
        cursor.execute("select cast(id as varchar(36)) from predictions order by id")
        found = [str(row[0]).replace("-", "") for row in cursor.fetchall()]
        connection.close()
    return found


def _state(log: PredictionLog) -> str:
    return log.database_state


def _serves(log: PredictionLog) -> bool:
    return log.serving


def _plain(ids: list[str]) -> list[str]:
    return sorted(identifier.replace("-", "") for identifier in ids)


def test_what_is_recorded_is_in_the_database_once(storage_settings: StorageSettings) -> None:
    """Single rows and batches; and the journal is empty afterwards."""
    ids = new_ids(5_000)

    async def work(log: PredictionLog) -> None:
        for identifier in ids[:100]:
            log.record(_frames([identifier]), 1)
        log.record(_frames(ids[100:]), len(ids) - 100)
        assert await log.flush(20)
        assert log.pending_bytes == 0
        assert log.database_state == "up"

    _run(storage_settings, work)
    assert _ids(storage_settings) == _plain(ids)
    assert segment_paths(storage_settings.journal_dir) == []


def test_a_record_that_is_there_already_is_left_alone(storage_settings: StorageSettings) -> None:
    """A batch that is written again, after a crash before its acknowledgement, changes nothing."""
    ids = new_ids(10)

    async def work(log: PredictionLog) -> None:
        log.record(_frames(ids, 1.0), 10)
        assert await log.flush(20)
        log.record(_frames(ids, 2.0) + _frames(new_ids(1)), 11)
        assert await log.flush(20)

    _run(storage_settings, work)
    assert len(_ids(storage_settings)) == 11


@pytest.mark.parametrize("poison", ["id", "json", "missing"])
def test_a_poisoned_record_is_dead_lettered_and_its_companions_arrive(
    storage_settings: StorageSettings, poison: str
) -> None:
    """It is found by halving, and kept with the reason."""
    ids = new_ids(100)
    good = _frames(ids).splitlines(keepends=True)
    payload = good[0][18:-1]
    bad = {
        "id": payload.replace(ids[0].encode(), b"not-an-id"),
        "json": b'{"id": NaN, "surrogate": "\\ud800"',
        "missing": b'{"id": "%s"}' % new_ids(1)[0].encode(),
    }[poison]
    metrics = Metrics()

    async def work(log: PredictionLog) -> None:
        log.record(b"".join([*good[:37], frame(bad), *good[37:]]), 101)
        assert await log.flush(20)
        letters = log.dead_letters.read_text().splitlines()
        assert len(letters) == 1
        assert "reason" in letters[0]

    _run(storage_settings, work, metrics)
    assert _ids(storage_settings) == _plain(ids)
    assert metrics.registry.get_sample_value("presage_log_dead_letters_total") == 1
    assert metrics.registry.get_sample_value("presage_log_drained_total") == 100


def test_texts_that_databases_dislike_do_not_keep_their_companions_out(storage_settings: StorageSettings) -> None:
    """A NUL in a text is stored, or dead-lettered; the rows beside it arrive either way."""
    ids = new_ids(3)
    rows = zip(ids, ("a", "nul \0 byte", "b"), strict=True)
    frames = RECORDER.frames([(i, {"x": text}, Prediction("yes")) for i, text in rows], ORIGIN, 1.0, timestamp())

    async def work(log: PredictionLog) -> None:
        log.record(b"".join(frames), 3)
        assert await log.flush(20)

    _run(storage_settings, work)
    found = _ids(storage_settings)
    assert {_plain([ids[0]])[0], _plain([ids[2]])[0]} <= set(found)


def test_records_of_a_dead_process_are_drained_by_the_next(storage_settings: StorageSettings) -> None:
    """What a killed process has left is adopted at the next start."""
    ids = new_ids(50)
    left = Journal(storage_settings.journal_dir, max_bytes=1 << 30)
    left.append(_frames(ids))
    left.close()

    async def work(log: PredictionLog) -> None:
        assert await log.flush(20)

    _run(storage_settings, work)
    assert _ids(storage_settings) == _plain(ids)


def test_a_death_between_commit_and_acknowledgement_changes_nothing(storage_settings: StorageSettings) -> None:
    """The database has what memory gave; the next process finds it in the file, and writes it again in vain."""
    ids = new_ids(700)
    left = Journal(storage_settings.journal_dir, max_bytes=1 << 30)
    left.append(_frames(ids[:500]))
    left.append(_frames(ids[500:]))
    (segment,) = left.segments()
    with Database(storage_settings) as database:
        connection = database.writer_connection()
        WRITERS[database.dialect](connection, unchecked_payloads(left.take(segment, 1)))
        connection.close()
    assert _ids(storage_settings) == _plain(ids[:500])
    left.close()

    async def work(log: PredictionLog) -> None:
        assert await log.flush(20)

    _run(storage_settings, work)
    assert _ids(storage_settings) == _plain(ids)


def test_memory_and_file_put_the_same_into_the_database(storage_settings: StorageSettings) -> None:
    """Numbers, texts, nulls, failures, and fields that are dropped or hashed; what is refused is refused by both."""
    frames = _awkward_frames()
    settings = storage_settings

    async def from_memory(log: PredictionLog) -> None:
        for frame_ in frames:
            log.record(frame_, 1)
        assert await log.flush(20)

    async def from_file(log: PredictionLog) -> None:
        assert await log.flush(20)

    _run(settings, from_memory)
    letters = settings.journal_dir / DEAD_LETTERS
    found, refused = _take_rows(settings), letters.read_text() if letters.exists() else ""
    letters.unlink(missing_ok=True)
    left = Journal(settings.journal_dir, max_bytes=1 << 30)
    left.append(b"".join(frames))
    left.close()
    _run(settings, from_file)
    assert _take_rows(settings) == found
    assert (letters.read_text() if letters.exists() else "") == refused
    assert len(found) + refused.count("\n") == len(frames)
    assert len(found) >= len(frames) - 6  # PostgreSQL refuses a NUL in a text


def _awkward_frames() -> list[bytes]:
    texts = ["plain", "null", "\0", "a\tb", 'quo"ted', "back\\slash", "line\nbreak", "\u2028", "日本", "\U0001f600", ""]
    numbers = [0.0, -0.0, 1e-300, 1.7976931348623157e308, 0.1, 1e16, -5e-324, 123456789.123456789]
    outcomes: list[Prediction | FieldError] = [
        *(Prediction(text, {text: 0.1, "other": 0.9}) for text in texts),
        *(Prediction(7, {"7": number}) for number in numbers),
        Prediction(value=True),
        Prediction("yes"),
        FieldError("model_failed", "the model failed on this row"),
    ]
    rules = [LogRules(), LogRules(default="drop"), LogRules(fields={"text": "hash"})]
    recorders = [Recorder(make_manifest(NUMBER, GAP, TEXT), each, b"key") for each in rules]
    frames = []
    for n, outcome in enumerate(outcomes * len(recorders)):
        text, number = texts[n % len(texts)], numbers[n % len(numbers)]
        row = {NUMBER.name: number, GAP.name: None, TEXT.name: text}
        # A NUL in a caller's name is refused; it comes once.
        origin = Origin(text if "\0" not in text else "r", f"caller {n % 4} 日", f"v{n % 2}")
        recorder = recorders[n // len(outcomes)]
        frames += recorder.frames([(new_ids(1)[0], row, outcome)], origin, number, timestamp(), cached=n % 5 == 0)
    return frames


def _take_rows(settings: StorageSettings) -> list[tuple[Any, ...]]:
    """Every row, all columns as the driver gives them and JSON also as its text; none is left."""
    with Database(settings) as database:
        connection = database.writer_connection()
        cursor = connection.cursor()
        texts = ("cast(inputs as text)", "cast(output as text)", "cast(probabilities as text)")
        cursor.execute(f"select {', '.join(texts)}, predictions.* from predictions order by id")  # noqa: S608
        rows = cursor.fetchall()
        assert not any("\t" in text for row in rows for text in row[: len(texts)] if text)
        found = [tuple(map(repr, row)) for row in rows]
        cursor.execute("delete from predictions")
        connection.commit()
        connection.close()
    return found


def test_a_database_that_comes_back_gets_what_memory_could_not_hold(tmp_path: Path) -> None:
    """Twice what is kept is recorded while there is no table, and more while it is caught up with."""
    settings = StorageSettings(
        database_url=SecretStr(f"sqlite:///{tmp_path}/late.db"), journal_dir=tmp_path / "journal"
    )
    ids, later = new_ids(40_000), new_ids(5_000)

    async def work(log: PredictionLog) -> None:
        for start in range(0, len(ids), 1_000):
            log.record(_frames(ids[start : start + 1_000]), 1_000)
        assert log.pending_bytes > KEPT_BYTES
        assert not await log.flush(0.3)
        await asyncio.to_thread(_migrate, settings)
        for start in range(0, len(later), 100):
            log.record(_frames(later[start : start + 100]), 100)
            await asyncio.sleep(0)
        assert await log.flush(30)
        assert log.pending_bytes == 0

    _run(settings, work)
    assert _ids(settings) == _plain(ids + later)


def test_a_damaged_record_is_dead_lettered(storage_settings: StorageSettings) -> None:
    """Its checksum tells."""
    ids = new_ids(3)
    lines = _frames(ids).splitlines(keepends=True)
    left = Journal(storage_settings.journal_dir, max_bytes=1 << 30)
    left.append(lines[0] + lines[1].replace(b"yes", b"YES") + lines[2])
    left.close()

    async def work(log: PredictionLog) -> None:
        assert await log.flush(20)
        assert "the record is damaged" in log.dead_letters.read_text()

    _run(storage_settings, work)
    assert _ids(storage_settings) == _plain([ids[0], ids[2]])


def test_without_its_tables_the_journal_keeps_what_comes_and_they_are_filled_later(tmp_path: Path) -> None:
    """The service may start before the migration."""
    url = f"sqlite:///{tmp_path}/late.db"
    settings = StorageSettings(database_url=SecretStr(url), journal_dir=tmp_path / "journal")
    ids = new_ids(20)

    async def work(log: PredictionLog) -> None:
        log.record(_frames(ids), 20)
        assert not await log.flush(0.5)
        assert _state(log) == "behind"
        assert log.pending_bytes > 0
        await asyncio.to_thread(_migrate, settings)
        assert await log.flush(20)
        assert _state(log) == "up"

    _run(settings, work)
    assert _ids(settings) == _plain(ids)


def _migrate(settings: StorageSettings) -> None:
    from app.storage.migrations import upgrade  # noqa: PLC0415 -- alembic, for this test alone

    upgrade(settings)


def test_a_locked_database_is_waited_for_and_then_caught_up_with(sqlite_url: str, tmp_path: Path) -> None:
    """Another program holds the file; recording goes on at full speed."""
    ids = new_ids(100)
    path = sqlite_url.removeprefix("sqlite:///")
    sqlite_settings = StorageSettings(database_url=SecretStr(sqlite_url), journal_dir=tmp_path / "journal")

    async def work(log: PredictionLog) -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("begin exclusive")
        started = time.perf_counter()
        for identifier in ids:
            log.record(_frames([identifier]), 1)
        assert time.perf_counter() - started < 1
        assert not await log.flush(0.3)
        other.execute("rollback")
        other.close()
        assert await log.flush(20)

    _run(sqlite_settings, work)
    assert _ids(sqlite_settings) == _plain(ids)


@pytest.mark.parametrize("policy", ["require", "best-effort"])
def test_a_full_journal_follows_the_policy_and_heals(tmp_path: Path, policy: str) -> None:
    """`require` refuses; `best-effort` answers and counts what it lost."""
    settings = StorageSettings.model_validate(
        {
            "database_url": f"sqlite:///{tmp_path}/none.db",
            "journal_dir": tmp_path / "journal",
            "journal_max_bytes": 1 << 20,
            "log_policy": policy,
        }
    )
    metrics = Metrics()
    large = _frames(new_ids(1_000))

    async def work(log: PredictionLog) -> None:
        for _ in range((1 << 20) // len(large)):
            log.record(large, 1_000)
        if policy == "require":
            with pytest.raises(LogUnavailable):
                log.record(large, 1_000)
            with pytest.raises(LogUnavailable):
                log.admit()
            assert not _serves(log)
        else:
            log.record(large, 1_000)
            log.admit()
            assert _serves(log)
        assert log.failing == "full"
        await asyncio.to_thread(_migrate, settings)
        assert await log.flush(20)
        log.record(large, 1_000)
        assert not log.failing
        assert _serves(log)

    _run(settings, work, metrics)
    lost = metrics.registry.get_sample_value("presage_log_lost_total")
    assert lost == (0 if policy == "require" else 1_000)


def test_predictions_past_their_age_are_deleted_while_others_arrive(storage_settings: StorageSettings) -> None:
    """By the rule of their model; the log's own thread does it, in steps between its batches."""
    fresh = new_ids(10)
    year_ago = f"{(time.time_ns() // 1_000_000 - 365 * 86_400_000):012x}"
    old = [f"{year_ago[:8]}-{year_ago[8:]}{identifier[13:]}" for identifier in new_ids(10)]

    async def run() -> None:
        with Database(storage_settings) as database:
            async with PredictionLog(storage_settings, database, Metrics(), lambda _: 30) as log:
                log.record(_frames(old + fresh), 20)
                assert await log.flush(20)
                deadline = time.monotonic() + 30
                while len(await asyncio.to_thread(_ids, storage_settings)) > len(fresh):
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.1)

    asyncio.run(run())
    assert _ids(storage_settings) == _plain(fresh)
