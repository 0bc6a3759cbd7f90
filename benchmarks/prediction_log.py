"""What the prediction log costs: throughput with and without it, how fast it drains, and a frozen database.

    python -m benchmarks.prediction_log [--seconds 5] [--rounds 3]

The server has one core to itself and the load generator (wrk) the other; modes take turns in one run, so that a machine
that is slower for a while is slower for all. Results go to `benchmarks/results/prediction_log.md`.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import click
from pydantic import SecretStr

from app.config import StorageSettings
from app.inference.identifiers import new_ids
from app.manifest import LogRules
from app.pipelines.base import Prediction
from app.storage.database import Database
from app.storage.journal import Journal
from app.storage.migrations import upgrade
from app.storage.prediction_log import PredictionLog
from app.storage.records import Origin, Recorder, timestamp
from app.telemetry.metrics import Metrics
from benchmarks.load import pinned_server, write_script, wrk
from tests.support.manifests import NUMBER, make_manifest
from tests.support.postgres import Postgres, running_postgres
from tests.support.server import ROOT, Server
from tests.support.versions import write_classifier

RESULTS = ROOT / "benchmarks/results/prediction_log.md"
DRAINED_ROWS = 200_000


@click.command()
@click.option("--seconds", default=5, show_default=True, help="Length of one measurement.")
@click.option("--rounds", default=3, show_default=True, help="Turns that each mode takes.")
def main(seconds: int, rounds: int) -> None:
    """Measure, print, and write the table."""
    with tempfile.TemporaryDirectory(prefix="presage-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        write_classifier(folder / "models")
        write_script(folder / "post.lua", ['{"inputs": {"x": 3}}'])
        with running_postgres(durable=True) as postgres:
            upgrade(StorageSettings(database_url=SecretStr(postgres.url())))
            lines = [*_throughput(folder, postgres, seconds, rounds), "", *_drain(folder, postgres)]
            lines += ["", *_frozen(folder, postgres, seconds)]
    page = "\n".join([_head(), *lines, ""])
    click.echo(page)
    RESULTS.write_text(page)


def _head() -> str:
    command = f"`python -m benchmarks.prediction_log`, Python {sys.version.split()[0]}, {datetime.now(UTC):%Y-%m-%d}"
    return f"# The prediction log\n\n{command}. One core for the server, one for wrk with 32 connections.\n"


def _throughput(folder: Path, postgres: Postgres, seconds: int, rounds: int) -> list[str]:
    """Requests a second by mode, modes in turns; and what is still pending when the load has stopped."""
    modes = {
        "off": {"LOG_POLICY": "off"},
        "SQLite": {},
        "PostgreSQL": {"DATABASE_URL": postgres.url()},
    }
    rates: dict[str, list[float]] = {mode: [] for mode in modes}
    pending: dict[str, int] = dict.fromkeys(modes, 0)
    for turn in range(rounds):
        for mode, environment in modes.items():
            place = folder / f"{mode}-{turn}"
            place.mkdir()
            upgrade(StorageSettings(database_url=SecretStr(f"sqlite:///{place}/presage.db")))
            with _server(folder, place, environment) as server:
                _wrk(server, folder, 1)
                rates[mode].append(_wrk(server, folder, seconds)["rate"])
                pending[mode] = max(pending[mode], _pending(server))
            click.echo(f"  {mode}: {rates[mode][-1]:,.0f} requests/s", err=True)
    base = statistics.median(rates["off"])
    lines = ["| log | requests/s, median | least to most | ÷ off | bytes pending at the end |", "|---|---|---|---|---|"]
    for mode, found in rates.items():
        median = statistics.median(found)
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        lines.append(f"| {mode} | {median:,.0f} | {spread} | {median / base:.2f} | {pending[mode]:,} |")
    return lines


def _drain(folder: Path, postgres: Postgres) -> list[str]:
    """How fast a full journal goes into PostgreSQL, and what that costs this process."""
    settings = StorageSettings(database_url=SecretStr(postgres.url()), journal_dir=folder / "journal")
    recorder = Recorder(make_manifest(NUMBER), LogRules(), b"")
    journal = Journal(settings.journal_dir, max_bytes=1 << 30)
    for start in range(0, DRAINED_ROWS, 1_000):
        outcome = Prediction("yes", {"no": 0.25, "yes": 0.75})
        origin, row = Origin("request", "anonymous", "v2"), {NUMBER.name: float(start)}
        rows = recorder.frames([(i, row, outcome) for i in new_ids(1_000)], origin, 1.0, timestamp())
        journal.append(b"".join(rows))
    journal.close()

    async def drain() -> tuple[float, float]:
        with Database(settings) as database:
            wall, cpu = time.perf_counter(), time.process_time()
            async with PredictionLog(settings, database, Metrics()) as log:
                await log.flush(120)
            return time.perf_counter() - wall, time.process_time() - cpu

    wall, cpu = asyncio.run(drain())
    return [
        "| drain into PostgreSQL | |",
        "|---|---|",
        f"| rows | {DRAINED_ROWS:,} |",
        f"| rows/s | {DRAINED_ROWS / wall:,.0f} |",
        f"| µs of our CPU a row | {cpu / DRAINED_ROWS * 1e6:.2f} |",
    ]


def _frozen(folder: Path, postgres: Postgres, seconds: int) -> list[str]:
    """The tail of latency before PostgreSQL is frozen, and while it is."""
    place = folder / "frozen"
    with _server(folder, place, {"DATABASE_URL": postgres.url()}) as server:
        _wrk(server, folder, 1)
        before = _wrk(server, folder, seconds)
        postgres.freeze()
        try:
            during = _wrk(server, folder, seconds)
        finally:
            postgres.thaw()
    return [
        "| database | requests/s | p50 ms | p99 ms |",
        "|---|---|---|---|",
        f"| answers | {before['rate']:,.0f} | {before['p50']:.2f} | {before['p99']:.2f} |",
        f"| is frozen | {during['rate']:,.0f} | {during['p50']:.2f} | {during['p99']:.2f} |",
        (
            f"| ratio | {during['rate'] / before['rate']:.2f} | {during['p50'] / before['p50']:.2f} "
            f"| {during['p99'] / before['p99']:.2f} |"
        ),
    ]


def _server(folder: Path, place: Path, environment: dict[str, str]) -> AbstractContextManager[Server]:
    return pinned_server(folder / "models", place, environment)


def _wrk(server: Server, folder: Path, seconds: int) -> dict[str, float]:
    return wrk(f"{server.url}/v2/predict", folder / "post.lua", seconds)


def _pending(server: Server) -> int:
    """What the database does not have two tenths of a second after the load has stopped."""
    time.sleep(0.2)
    pending: int = server.wait_for("/health/ready", 200).json()["log"]["pending_bytes"]
    return pending


if __name__ == "__main__":
    main()
