"""`log`: what operators do with the prediction log."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, get_args

import click

from app.cli.instants import Time
from app.cli.log_journal import bring_in, drain, lag, verify
from app.cli.progress import Progress
from app.config import Settings, read_settings
from app.errors import OperatorError, StorageUnavailable, VersionRefused
from app.registry.sources import DirectorySource
from app.storage import queries
from app.storage.database import Database
from app.storage.drain import DEAD_LETTERS
from app.storage.exports import Format, opened
from app.storage.inspection import forget_dead_letters
from app.storage.retention import erase_subject, expire
from app.telemetry.logs import configure_logs

_OPERATOR = "operator"


@click.group()
def log() -> None:
    """Read the prediction log, and forget what it must not keep."""
    settings = read_settings()
    # Standard output belongs to what is exported.
    configure_logs(level=settings.server.log_level, json=settings.json_logs, stream=sys.stderr)


for _command in (lag, verify, drain):
    log.add_command(_command)


@log.command()
@click.option("--format", "kind", type=click.Choice(get_args(Format)), default="jsonl", show_default=True)
@click.option("--since", type=Time(), help="Made at this time or later.")
@click.option("--until", type=Time(), help="Made before this time.")
@click.option("--model", help="Only this model's.")
@click.option("--version", type=click.IntRange(1), help="Only this version's.")
@click.option("--label", help="Only where this label was predicted.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of standard output.")
@click.option("--progress/--no-progress", default=None, help="Say how far it is; by default on a terminal.")
def export(
    *,
    kind: Format,
    since: datetime | None,
    until: datetime | None,
    model: str | None,
    version: int | None,
    label: str | None,
    output: Path | None,
    progress: bool | None,
) -> None:
    """Write predictions with their feedback, oldest first, in constant memory.

    What is still in a journal is not there yet. Nothing is altered: before a CSV file is opened in a spreadsheet, whose
    cells may begin with `=`, its columns should be imported as text.
    """
    if kind == "parquet" and output is None:
        raise click.UsageError("--format parquet needs an --output FILE")
    filters = queries.Filters(since, until, model, version, label)
    shown = sys.stderr.isatty() if progress is None else progress
    with _database(read_settings()) as database, _target(output) as file, opened(kind, file) as write:

        def run(statement: Any) -> Any:
            with database.reading() as connection:  # one for each step: no transaction lasts as long as the export
                return queries.on(connection)(statement)

        bar = Progress(queries.span(run, filters) if shown else None)
        for prediction in queries.export(run, filters):
            write(prediction)
            bar.advance(prediction)
        bar.finish()


@log.command()
def retention() -> None:
    """Delete what is past its age now: LOG_RETENTION_DAYS, or what a model's own rules say. The service does it too."""
    settings = read_settings()
    total = {"predictions": 0, "feedback": 0}
    with _database(settings) as database:
        for step in expire(database, lambda name: _days(settings, name)):
            total["predictions"] += step.predictions
            total["feedback"] += step.feedback
    click.echo(f"deleted {_counted(**total)}")


@log.command()
@click.option("--subject", required=True, help="The caller's name, as the log has it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase(*, subject: str, yes: bool) -> None:
    """Delete every prediction that a caller asked for and all feedback that it gave; put on record that it was done."""
    if not yes:
        click.confirm("delete every prediction and every feedback of this caller?", abort=True, err=True)
    settings = read_settings()
    bring_in(settings)
    with _database(settings) as database:
        erased = erase_subject(database, subject, by=_OPERATOR)
    letters = forget_dead_letters(settings.storage.journal_dir / DEAD_LETTERS, subject)
    click.echo(f"deleted {_counted(erased.predictions, erased.feedback)}, and {letters:,} dead letters")


def _counted(predictions: int, feedback: int) -> str:
    return f"{predictions:,} predictions and {feedback:,} feedback"


def _days(settings: Settings, model: str) -> int:
    """How long a model's predictions are kept; for ever where its rules cannot be read, since deleting is final."""
    try:
        rules = DirectorySource(settings.models.models_dir).log_rules(model)
    except VersionRefused as error:
        click.echo(f"presage: {model} is left alone: {error}", err=True)
        return 0
    return settings.storage.log_retention_days if rules.retention_days is None else rules.retention_days


@contextmanager
def _database(settings: Settings) -> Iterator[Database]:
    with Database(settings.storage) as database:
        try:
            yield database
        except StorageUnavailable as error:
            hint = "is it there, and migrated (`python -m app migrate`)?"
            raise OperatorError(f"{error.detail}; {hint}") from None


@contextmanager
def _target(output: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that has its name only once it is complete."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = output.with_name(output.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(output)
    except OSError as error:
        raise OperatorError(f"{output}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
