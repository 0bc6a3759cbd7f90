"""`log lag`, `log verify` and `log drain`: the journal, for operators, while the service runs or does not."""

import asyncio
import sys
import time

import click

from app.config import Settings, read_settings
from app.errors import OperatorError
from app.storage.database import Database
from app.storage.drain import DEAD_LETTERS
from app.storage.inspection import SegmentReport, dead_letters, inspect
from app.storage.prediction_log import PredictionLog
from app.telemetry.metrics import Metrics

_LOOK_SECONDS = 1.0
_BRING_IN_SECONDS = 30.0


@click.command()
def lag() -> None:
    """How much the database does not have yet; a running service's newest segment counts in full."""
    reports = inspect(read_settings().storage.journal_dir)
    size, records = sum(r.size for r in reports), sum(r.records for r in reports)
    oldest = max((r.oldest_seconds for r in reports), default=0.0)
    click.echo(f"{records:,} records in {len(reports)} segments, {size:,} bytes, the oldest {oldest:,.1f} s old")


@click.command()
def verify() -> None:
    """Check every record of the journal; exit code 1 when one is damaged or was put aside as a dead letter."""
    folder = read_settings().storage.journal_dir
    reports = inspect(folder)
    for report in reports:
        click.echo(_line(report))
    letters = dead_letters(folder / DEAD_LETTERS)
    damaged = sum(report.damaged for report in reports)
    click.echo(f"{sum(r.records for r in reports):,} records are whole, {damaged} damaged; {letters} dead letters")
    if damaged or letters:
        sys.exit(1)


@click.command()
@click.option("--seconds", type=click.FloatRange(0), default=60.0, show_default=True, help="Give up after this long.")
def drain(*, seconds: float) -> None:
    """Bring what dead processes have left into the database. A running service drains its own segments by itself."""
    settings = read_settings()
    drained, left = asyncio.run(_drain(settings, seconds))
    others = sum(report.records for report in inspect(settings.storage.journal_dir) if report.alive)
    click.echo(f"drained {drained:,} records{_left_to_others(others)}")
    if left:
        raise OperatorError(f"{left:,} bytes are still in the journal: the database did not take them")


def bring_in(settings: Settings) -> None:
    """Wait until all that is recorded by now is in the database, and gone from the journal.

    What dead processes have left is drained here; a running service ends its segment within seconds by itself. Raises
    OperatorError when that does not happen: the database is away.
    """
    present = {report.path for report in inspect(settings.storage.journal_dir)}
    if not present:
        return
    asyncio.run(_drain(settings, _BRING_IN_SECONDS))
    deadline = time.monotonic() + _BRING_IN_SECONDS
    while any(path.exists() for path in present):
        if time.monotonic() > deadline:
            raise OperatorError("the journal still holds records that the database did not take; try again later")
        time.sleep(0.2)


async def _drain(settings: Settings, seconds: float) -> tuple[int, int]:
    """How many records went into the database, and how many bytes did not."""
    metrics = Metrics()
    with Database(settings.storage) as database:
        async with PredictionLog(settings.storage, database, metrics) as log:
            deadline = asyncio.get_running_loop().time() + seconds
            while not await log.flush(_LOOK_SECONDS) and asyncio.get_running_loop().time() < deadline:
                click.echo(f"{log.pending_bytes:,} bytes to go; the database is {log.database_state}", err=True)
            left = log.pending_bytes
    drained = metrics.registry.get_sample_value("presage_log_drained_total") or 0
    return int(drained), left


def _left_to_others(records: int) -> str:
    return f"; {records:,} more belong to processes that live, which drain them themselves" if records else ""


def _line(report: SegmentReport) -> str:
    owner = "its process lives" if report.alive else "its process is dead"
    return f"{report.path.name}: {report.records:,} records, {report.damaged} damaged, {report.size:,} bytes; {owner}"
