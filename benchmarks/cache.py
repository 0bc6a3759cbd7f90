"""What the cache costs a row: found in memory, found in Redis, not found; the source of the constants in `cache.py`.

    python -m benchmarks.cache

A caller alone in the process, on uvloop, with a Valkey on the loopback; the best and the median of many calls. Results
go to `benchmarks/results/cache.md`.
"""

import asyncio
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import click
import uvloop

from app.inference.entries import Entries, Entry
from app.inference.execution import Outcome
from app.inference.memory_cache import MemoryCache
from app.inference.row_cache import RowCache
from app.inference.shared_cache import MOST_KEYS, SharedCache
from app.pipelines.base import Prediction, Row
from app.registry.loader import LoadedModel, load_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.storage.redis import Redis, open_redis
from app.telemetry.metrics import Metrics
from tests.support.limits import until
from tests.support.server import ROOT
from tests.support.valkey import Valkey, running_valkey
from tests.support.versions import write_classifier

RESULTS = ROOT / "benchmarks/results/cache.md"
_CALLS = 3000
_MOST_BYTES = 1 << 30
_TTL = 300
Ask = Callable[[Sequence[Row]], Awaitable[Any]]
_ANSWER = {"small": 0.25, "big": 0.75}


@click.command()
def main() -> None:
    """Measure, print, and write the table."""
    with tempfile.TemporaryDirectory(prefix="presage-bench-") as name:
        write_classifier(Path(name))
        model = load_version(DirectorySource(Path(name)), "toy", 1, Trust())
    with running_valkey() as valkey:
        lines = uvloop.run(_measure(model, valkey))
    page = "\n".join([_HEAD, *lines, "", f"An entry in memory: {_entry_bytes(model):.0f} bytes.", ""])
    click.echo(page)
    RESULTS.write_text(page)


_HEAD = """# What the cache costs

`python -m benchmarks.cache`, one caller on one core. A model of one number and two labels; what it computes itself is
left out. Microseconds a row.

| a call | rows | best | median |
|---|---|---|---|"""


async def _measure(model: LoadedModel, valkey: Valkey) -> list[str]:
    metrics = Metrics()
    shared = SharedCache(cast("Redis", open_redis(valkey.settings)), metrics)
    shared.start()
    await until(lambda: shared.state == "up")

    def fresh(level: SharedCache | None) -> Ask:
        """A process that remembers nothing."""
        cache = RowCache(model, _TTL, MemoryCache(_MOST_BYTES), level, metrics)
        return lambda rows: cache.answer(rows, "me", _compute)

    lines = []
    for rows in (1, 100, 10_000):
        calls = max(10, _CALLS // rows)
        lines += [
            await _timed("computed, without a cache", rows, calls, _compute),
            await _timed("not found in memory", rows, calls, fresh(None)),
            await _timed("found in memory", rows, calls, fresh(None), same=True),
            await _timed("not found in Redis either", rows, calls, fresh(shared)),
        ]
        if rows <= MOST_KEYS:
            lines.append(await _timed("found in Redis", rows, calls, _forgetful(fresh, shared), same=True))
    await shared.stop()
    return lines


def _forgetful(fresh: Callable[[SharedCache], Ask], shared: SharedCache) -> Ask:
    """Each call by another process; the first waits until all has been written."""

    async def ask(rows: Sequence[Row]) -> None:
        cached = [False]
        while not all(cached):
            _, cached = await fresh(shared)(rows)

    return ask


async def _timed(what: str, rows: int, calls: int, ask: Ask, *, same: bool = False) -> str:
    await ask(_rows(rows, 0))
    times = []
    for _ in range(calls):
        some = _rows(rows, 0 if same else int.from_bytes(os.urandom(6)))
        started = time.perf_counter()
        await ask(some)
        times.append((time.perf_counter() - started) / rows * 1e6)
        await asyncio.sleep(0)
    return f"| {what} | {rows} | {min(times):.2f} | {statistics.median(times):.2f} |"


def _rows(count: int, start: int) -> list[Row]:
    return [{"x": float(start + number)} for number in range(count)]


async def _compute(rows: Sequence[Any]) -> list[Outcome]:
    return [Prediction("big", dict(_ANSWER)) for _ in rows]


def _entry_bytes(model: LoadedModel) -> float:
    entries, memory = Entries(model), MemoryCache(_MOST_BYTES)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(100_000):
        key = entries.keys([{"x": float(number)}], "")[0]
        entry = entries.pack(Prediction("big", {"small": number / 3, "big": number / 7}))
        memory.put(key, cast("Entry", entry), entries.bytes, _TTL)
    return (tracemalloc.get_traced_memory()[0] - before) / len(memory)


if __name__ == "__main__":
    main()
