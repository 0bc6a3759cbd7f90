"""The cache for tests: models that it is worth while for, and a lane that remembers what it was asked."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, Literal

from pydantic import SecretStr

from app.config import CacheSettings, StorageSettings
from app.inference.cache import PredictionCache, RowCache
from app.inference.execution import Outcome
from app.inference.lane import Lane
from app.inference.memory_cache import Clock
from app.inference.shared_cache import DEADLINE_SECONDS
from app.inference.turns import Terms
from app.manifest import CacheRules, Manifest
from app.pipelines import pipeline_for
from app.pipelines.base import Prediction, Row
from app.registry.loader import LoadedModel, load_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.runtimes.cost import Cost
from app.runtimes.sklearn import SklearnRuntime
from app.storage.records import Origin
from app.telemetry.metrics import Metrics
from tests.support.estimators import Fingerprint
from tests.support.limits import until
from tests.support.valkey import Valkey

OURS = ("tests.support.estimators",)


def load(root: Path, name: str = "toy", *, milliseconds: float = 10, **rules: Any) -> LoadedModel:
    """A version 1, taken to cost so much a row, under these rules."""
    model = load_version(DirectorySource(root), name, 1, Trust(OURS))
    return replace(model, cost=Cost(((1, milliseconds / 1000),)), cache_rules=CacheRules(**rules))


def model_of(manifest: Manifest, estimator: Any = None, **rules: Any) -> LoadedModel:
    """A version that was never on disk; without an estimator it answers a fingerprint of each row."""
    runtime = SklearnRuntime(estimator or Fingerprint().fit(None, None), manifest.task)
    cost, cache_rules = Cost(((1, 0.01),)), CacheRules(**rules)
    return LoadedModel(manifest, pipeline_for(manifest), runtime, runtime, 0.0, cost, cache_rules=cache_rules)


class Asked:
    """A model's lane behind a gate; `rows` are those that it was asked about, a list for each call."""

    def __init__(self, model: LoadedModel) -> None:
        self.rows: list[list[Row]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._lane = Lane(model, Metrics(), lambda *_: None)

    async def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """As `Lane.predict`, once the gate is open."""
        self.rows.append(list(rows))
        await self.gate.wait()
        ids = [str(number) for number in range(len(rows))]
        return await self._lane.predict(ids, rows, Terms(Origin("request", "anonymous", "v2")))

    async def through(
        self, cache: RowCache, rows: Sequence[Row], subject: str = "me", deadline: float = inf
    ) -> tuple[list[Outcome], list[bool]]:
        """What the cache answers to who asks for these rows, with this lane behind it."""
        return await cache.answer(rows, subject, lambda places: self([rows[place] for place in places]), deadline)

    @property
    def count(self) -> int:
        """How many rows in all."""
        return sum(map(len, self.rows))

    def close(self) -> None:
        """Let the lane end."""
        self._lane.close()


@asynccontextmanager
async def caching(
    cache: Literal["memory", "redis"] = "memory",
    storage: StorageSettings | None = None,
    metrics: Metrics | None = None,
    *,
    clock: Clock = time.monotonic,
    deadline_seconds: float = DEADLINE_SECONDS,
    **settings: Any,
) -> AsyncIterator[PredictionCache]:
    """A process's cache; with Redis, once it is up."""
    chosen = CacheSettings(cache=cache, **settings)
    more: dict[str, Any] = {"clock": clock, "deadline_seconds": deadline_seconds}
    async with PredictionCache(chosen, storage or StorageSettings(), metrics or Metrics(), **more) as opened:
        if cache == "redis":
            await until(lambda: opened.state == "up")
        yield opened


@asynccontextmanager
async def patient(valkey: Valkey, metrics: Metrics | None = None, **settings: Any) -> AsyncIterator[PredictionCache]:
    """A cache that waits for Redis as long as this machine may be busy with other things."""
    storage = StorageSettings(redis_url=SecretStr(f"{valkey.url}?socket_timeout=10"))
    async with caching("redis", storage, metrics, deadline_seconds=10, **settings) as opened:
        yield opened


def of(cache: PredictionCache, model: LoadedModel) -> RowCache:
    """The cache of a version that has one."""
    found = cache.of(model)
    assert found is not None
    return found


def numbers(*values: float) -> list[Row]:
    """Rows of a model of one number."""
    return [{"x": float(value)} for value in values]


def value(outcome: Outcome) -> Any:
    """What was predicted, or the code of the error."""
    return outcome.value if isinstance(outcome, Prediction) else outcome.code


def counted(metrics: Metrics, name: str = "toy") -> dict[str, int]:
    """What the rows of a model came to in the cache, but for what never happened."""
    kinds = ("hit_memory", "hit_redis", "joined", "miss")
    found = {}
    for kind in kinds:
        labels = {"model": name, "version": "1", "outcome": kind}
        count = int(metrics.registry.get_sample_value("presage_cache_rows_total", labels) or 0)
        if count:
            found[kind] = count
    return found
