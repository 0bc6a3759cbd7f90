"""`replay`: what another version would have answered, row by row of a logged window."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from app.cli.instants import Time
from app.cli.progress import Progress
from app.cli.tables import lines
from app.config import Settings, read_settings
from app.errors import FieldError, OperatorError, PresageError, StorageUnavailable, VersionRefused
from app.pipelines.base import to_json
from app.release.versions import Versions
from app.storage import queries
from app.storage.database import Database
from app.telemetry.logs import configure_logs

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel
    from app.release.replay import Differences, Rescored

_MOST_FLIPS = 20


@click.command()
@click.option("--from", "since", type=Time(), required=True, help="Answered at this time or later.")
@click.option("--until", type=Time(), help="Answered before this time; now, unless said.")
@click.option("--model", required=True, help="Whose requests.")
@click.option("--version", required=True, help="Which version to ask: a number or an alias.")
@click.option("--against", type=click.IntRange(1), help="Only what this version answered; what any did, unless said.")
@click.option("--json", "as_json", is_flag=True, help="All figures, as JSON.")
@click.option(
    "--rows", type=click.Path(dir_okay=False, path_type=Path), help="A file for the rows that differ, as JSON lines."
)
@click.option("--progress/--no-progress", default=None, help="Say how far it is; by default on a terminal.")
def replay(
    *,
    since: datetime,
    until: datetime | None,
    model: str,
    version: str,
    against: int | None,
    as_json: bool,
    rows: Path | None,
    progress: bool | None,
) -> None:
    """Put the logged requests of a window to a version again, and show what would have come out otherwise.

    What is still in a journal is not there yet. Rows of which the log keeps hashes, or not all inputs, cannot be asked.
    """
    settings = read_settings()
    # Standard output belongs to the report.
    configure_logs(level=settings.server.log_level, json=settings.json_logs, stream=sys.stderr)
    filters = queries.Filters(since, until, model, against)
    shown = sys.stderr.isatty() if progress is None else progress
    with _errors(), _target(rows) as file:
        candidate, versions = _load(settings, model, version)
        with Database(settings.storage) as database:
            differences = _replay(candidate, versions, database, filters, file, shown=shown)
    found = {"model": model, "version": candidate.version, **differences.figures()}
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(_report(found)))


def _load(settings: Settings, model: str, version: str) -> "tuple[LoadedModel, Versions]":
    versions = Versions(settings.models, production=settings.place.production)
    return versions.load(model, versions.number(model, version)), versions


def _replay(
    candidate: "LoadedModel",
    versions: Versions,
    database: Database,
    filters: queries.Filters,
    file: BinaryIO | None,
    *,
    shown: bool,
) -> "Differences":
    from app.release.replay import Differences, rescore, steps, wholeness  # noqa: PLC0415 -- scipy, behind usage errors

    run = steps(database)
    bar = Progress(queries.span(run, filters) if shown else None)
    differences = Differences()
    whole = wholeness(versions.source, candidate.name)
    for rescored in rescore(candidate, queries.export(run, filters), whole):
        if differences.add(rescored) and file is not None:
            file.write(to_json(_row(rescored)) + b"\n")
        bar.advance(rescored.logged)
    bar.finish()
    return differences


def _row(rescored: "Rescored") -> dict[str, Any]:
    logged, outcome = rescored.logged, rescored.outcome
    was = {"prediction": logged.output, "probabilities": logged.probabilities, "version": logged.version}
    if outcome is None or isinstance(outcome, FieldError):
        now: dict[str, Any] = {"error": outcome and outcome.code, "field": outcome and outcome.field}
    else:
        now = {"prediction": outcome.value, "probabilities": outcome.probabilities}
    return {"id": logged.id, "was": was, "is": now}


def _report(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['model']} {found['version']}, asked again what was logged"
    yield ""
    counts = ("rows", "unasked", "failed_then", "refused", "failed", "compared", "equal")
    said = {"unasked": "not all inputs kept", "failed_then": "failed then"}
    yield from lines(("ROWS", "COUNT"), [(said.get(name, name), f"{found[name]:,}") for name in counts])
    if found["flips"]:
        yield ""
        flips = found["flips"][:_MOST_FLIPS]
        yield from lines(("WAS", "IS", "ROWS"), [(flip["was"], flip["is"], f"{flip['rows']:,}") for flip in flips])
        if len(found["flips"]) > _MOST_FLIPS:
            yield f"and {len(found['flips']) - _MOST_FLIPS} more pairs of labels"
    yield ""
    spreads = {
        "score of the label of then, difference": found["score_difference"],
        "number, difference": found["number_difference"],
        "ms then, as callers waited": found["latency_ms"]["then"],
        "ms now, one row alone": found["latency_ms"]["now"],
    }
    yield from _spreads(spreads)
    yield from _feedback(found["feedback"])


def _spreads(spreads: dict[str, dict[str, Any]]) -> Iterator[str]:
    names = ("mean", "p5", "p50", "p95")
    rows = [(what, *(_number(spread[name]) for name in names)) for what, spread in spreads.items() if spread["count"]]
    if rows:
        yield from lines(("", *(name.upper() for name in names)), rows)


def _feedback(found: dict[str, Any]) -> Iterator[str]:
    yield ""
    if not found["rows"]:
        yield "no feedback on these rows"
        return
    kind = "accuracy" if "accuracy" in found else "mean_absolute_error"
    show: Callable[[Any], str] = _share if kind == "accuracy" else _number
    then, now = show(found[kind]["then"]), show(found[kind]["now"])
    yield f"{kind.replace('_', ' ')} on {found['rows']:,} rows with feedback: {then} then, {now} now"
    yield f"better on {found['better']:,}, worse on {found['worse']:,} of them (p = {found['p_value']:.3g})"


def _share(interval: dict[str, Any]) -> str:
    return f"{interval['share']:.4f} ({interval['low']:.4f} to {interval['high']:.4f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


@contextmanager
def _errors() -> Iterator[None]:
    """What is wrong as a message for the person who asked."""
    try:
        yield
    except StorageUnavailable as error:
        raise OperatorError(f"{error.detail}; is it there, and migrated (`python -m app migrate`)?") from None
    except PresageError as error:
        cause = f" ({error.__cause__})" if isinstance(error.__cause__, VersionRefused) else ""
        raise OperatorError(f"{error.detail}{cause}") from None
    except OSError as error:
        raise OperatorError(f"{error.filename}: {error.strerror}") from None


@contextmanager
def _target(path: Path | None) -> Iterator[BinaryIO | None]:
    if path is None:
        yield None
    else:
        with path.open("wb") as file:
            yield file
