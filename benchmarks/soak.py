"""Mixed load for as long as you like, with something broken every minute; afterwards the accounts must balance.

    python -m benchmarks.soak [--minutes 30] [--every 60] [--workers 2]

Two workers with a PostgreSQL of their own. Callers predict one row or a batch, on connections that they keep or on new
ones, and look at `/metrics` and `/health/ready`. Every answer's id is kept. At the end: each answered row is in the
database once, no row is there that nobody asked for, no request failed beyond those of processes that were killed, and
memory is where it was. Results go to `benchmarks/results/soak.md`; the exit code is 1 when something does not balance.
"""

import itertools
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import click
import httpx2
from pydantic import SecretStr

from app.config import StorageSettings
from app.storage.migrations import upgrade
from benchmarks.processes import pss_bytes
from benchmarks.workers import family
from tests.support.ledger import rows_of
from tests.support.postgres import Postgres, running_postgres
from tests.support.server import ROOT, Server, running_server
from tests.support.versions import write_classifier

RESULTS = ROOT / "benchmarks/results/soak.md"
_CALLERS = 8
_BATCH = 5
_PAUSE_SECONDS = 0.02
_SILENT_SECONDS = 5
_AWAY_SECONDS = 15
_SETTLE_SECONDS = 20


@dataclass
class Account:
    """What callers were told."""

    answered: list[UUID] = field(default_factory=list)
    unknown_rows: int = 0  # of requests without an answer: they may be in the database, or not
    statuses: Counter[int | str] = field(default_factory=Counter)
    failures: list[tuple[float, str]] = field(default_factory=list)


@click.command()
@click.option("--minutes", default=30.0, show_default=True, help="How long.")
@click.option("--every", default=60.0, show_default=True, help="Seconds from one fault to the next.")
@click.option("--workers", default=2, show_default=True, help="Worker processes.")
def main(minutes: float, every: float, workers: int) -> None:
    """Load, break, compare, and write the table."""
    with tempfile.TemporaryDirectory(prefix="presage-soak-") as name, running_postgres(durable=True) as postgres:
        folder = Path(name)
        folder.chmod(0o755)
        write_classifier(folder / "models")
        upgrade(StorageSettings(database_url=SecretStr(postgres.url())))
        environment = {
            "DEFAULT_MODEL": "toy",
            "LOG_FORMAT": "json",
            "WORKERS": str(workers),
            "WORKER_TIMEOUT_SECONDS": str(_SILENT_SECONDS),
            "DATABASE_URL": postgres.url(),
        }
        with running_server(folder / "models", folder / "log", environment) as server:
            lines, balanced = _soak(server, postgres, minutes * 60, every)
    page = "\n".join([_head(minutes, every, workers), *lines, ""])
    click.echo(page)
    RESULTS.write_text(page)
    sys.exit(0 if balanced else 1)


def _head(minutes: float, every: float, workers: int) -> str:
    command = f"`python -m benchmarks.soak --minutes {minutes:g} --every {every:g} --workers {workers}`"
    return f"# Soak\n\n{command}, Python {sys.version.split()[0]}, {datetime.now(UTC):%Y-%m-%d}.\n"


def _soak(server: Server, postgres: Postgres, seconds: float, every: float) -> tuple[list[str], bool]:
    account = Account()
    faults: list[tuple[float, str]] = []
    sizes: list[int] = []
    with _load(server, account):
        time.sleep(_SETTLE_SECONDS)
        end = time.monotonic() + seconds
        for name, break_it in itertools.cycle(_faults(server, postgres).items()):
            sizes.append(sum(map(pss_bytes, family(server))))
            faults.append((time.monotonic(), name))
            click.echo(f"  {name}: {len(account.answered):,} rows so far, {sizes[-1] >> 20} MiB", err=True)
            break_it()
            if time.monotonic() + every > end:
                break
            time.sleep(every)
        time.sleep(_SETTLE_SECONDS)
        sizes.append(sum(map(pss_bytes, family(server))))
    _wait_until_drained(server)
    code = server.stop()
    rows = rows_of(postgres.url())
    return _report(account, faults, sizes, rows, code)


def _faults(server: Server, postgres: Postgres) -> dict[str, Callable[[], None]]:
    def a_worker(number: signal.Signals) -> None:
        templates = _children(server.process.pid)
        workers = [worker for template in templates for worker in _children(template)]
        os.kill(random.choice(workers), number)  # noqa: S311 -- any will do

    def database_away() -> None:
        postgres.kill()
        time.sleep(_AWAY_SECONDS)
        postgres.start()

    def database_frozen() -> None:
        postgres.freeze()
        time.sleep(_AWAY_SECONDS)
        postgres.thaw()

    return {
        "a worker is killed": lambda: a_worker(signal.SIGKILL),
        "all is loaded anew (SIGHUP)": lambda: server.process.send_signal(signal.SIGHUP),
        "PostgreSQL is killed, and back 15 s later": database_away,
        "a worker freezes": lambda: a_worker(signal.SIGSTOP),
        "PostgreSQL freezes for 15 s": database_frozen,
        "the template is killed, and all workers with it": lambda: os.kill(
            _children(server.process.pid)[0], signal.SIGKILL
        ),
    }


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def _load(server: Server, account: Account) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=_call, args=(server.url, account, stop, n)) for n in range(_CALLERS)]
    threads.append(threading.Thread(target=_watch, args=(server.url, account, stop)))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _call(url: str, account: Account, stop: threading.Event, number: int) -> None:
    """Every other caller keeps its connection; every fourth sends batches."""
    batch = number % 4 == 0
    path = "/v2/batch" if batch else "/v2/predict"
    body = {"inputs": [{"x": 3}] * _BATCH} if batch else {"inputs": {"x": 3}}
    limits = httpx2.Limits(max_keepalive_connections=0 if number % 2 else 1)
    with httpx2.Client(base_url=url, timeout=30, limits=limits) as client:
        while not stop.is_set():
            try:
                answer = client.post(path, json=body)
            except httpx2.TransportError as error:
                account.failures.append((time.monotonic(), type(error).__name__))
                account.unknown_rows += _BATCH if batch else 1
                stop.wait(0.05)
                continue
            account.statuses[answer.status_code] += 1
            if answer.status_code == 200:
                document = answer.json()
                found = document["results"] if batch else [document]
                account.answered += [UUID(one["id"]) for one in found]
            else:
                account.failures.append((time.monotonic(), str(answer.status_code)))
            stop.wait(_PAUSE_SECONDS)


def _watch(url: str, account: Account, stop: threading.Event) -> None:
    """Counters never go back, and whoever answers is ready."""
    last = 0.0
    while not stop.wait(1.0):
        try:
            text = httpx2.get(f"{url}/metrics", timeout=10).text
            ready = httpx2.get(f"{url}/health/ready", timeout=10).status_code
        except httpx2.TransportError as error:
            account.failures.append((time.monotonic(), type(error).__name__))
            continue
        account.statuses[f"ready {ready}"] += 1
        lines = [line for line in text.splitlines() if line.startswith("presage_predictions_total{")]
        now = sum(float(line.split()[-1]) for line in lines)
        if now < last:
            account.failures.append((time.monotonic(), f"a counter went back from {last:g} to {now:g}"))
        last = now


def _wait_until_drained(server: Server) -> None:
    deadline = time.monotonic() + 60
    while server.wait_for("/health/ready", 200).json()["log"]["pending_bytes"] and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(2)  # the other workers' journals


def _report(
    account: Account, faults: list[tuple[float, str]], sizes: list[int], rows: list[UUID], code: int
) -> tuple[list[str], bool]:
    answered, stored = set(account.answered), set(rows)
    extra = len(stored - answered)
    lines = ["| | |", "|---|---|"]
    lines.append(f"| rows answered | {len(account.answered):,} |")
    lines.append(f"| of these not in the database | {len(answered - stored):,} |")
    lines.append(f"| rows that are there twice | {len(rows) - len(stored):,} |")
    lines.append(f"| rows that are there and whose answer got lost on the way | {extra:,} |")
    lines.append(f"| statuses | {dict(sorted(account.statuses.items(), key=str))} |")
    lines.append(f"| MiB at each fault (proportional set size of all) | {', '.join(str(s >> 20) for s in sizes)} |")
    lines.append(f"| exit code | {code} |")
    lines += ["", "| fault | times | failed requests before the next one |", "|---|---|---|"]
    names = Counter(name for _, name in faults)
    blamed: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {name: Counter() for name in names}
    for moment, kind in account.failures:
        before = [name for at, name in faults if at <= moment]
        name = before[-1] if before else "before the first"
        blamed[name] += 1
        kinds.setdefault(name, Counter())[kind] += 1
    for name in names:
        lines.append(f"| {name} | {names[name]} | {blamed[name]} {dict(kinds[name]) or ''} |")
    third = max(1, len(sizes) // 3)
    growth = statistics.median(sizes[-third:]) / statistics.median(sizes[:third])
    lines += ["", f"Memory at the end ÷ at the beginning (medians of a third): {growth:.2f}."]
    killing = {name for name in names if "killed" in name or "worker freezes" in name}
    innocent = sum(count for name, count in blamed.items() if name not in killing)
    balanced = not (answered - stored) and len(rows) == len(stored) and extra <= account.unknown_rows
    return lines, balanced and not innocent and code == 0


if __name__ == "__main__":
    main()
