"""PredictionCache: answers that were given before, row by row, in this process and, beside it, in Redis.

Nothing depends on it. A row that is not found is computed, and so is one whose answer was being computed elsewhere and
did not come. What fails is never kept.
"""

import time
from typing import TYPE_CHECKING, Literal, Self

import structlog

from app.config import CacheSettings, StorageSettings
from app.errors import InvalidSettings
from app.inference.memory_cache import Clock, MemoryCache
from app.inference.row_cache import RowCache
from app.inference.shared_cache import DEADLINE_SECONDS, SharedCache
from app.storage.redis import open_redis
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

__all__ = ["CacheState", "CacheUse", "PredictionCache", "RowCache"]

log = structlog.get_logger(__name__)

CacheState = Literal["off", "memory", "up", "down"]
CacheUse = Literal["off", "needless", "memory", "redis"]

# What a row that is not found costs on top, as benchmarks/cache.py measures it, rounded up. A model that answers a row
# sooner than the first is asked at once; one that is slower than the first alone is not worth a question to Redis.
MEMORY_SECONDS = 10e-6
REDIS_SECONDS = 200e-6


class PredictionCache:
    """Open it as an async context manager: Redis is looked after while it is open."""

    def __init__(
        self,
        settings: CacheSettings,
        storage: StorageSettings,
        metrics: Metrics,
        *,
        clock: Clock = time.monotonic,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        """Connects to nothing yet. `clock` counts seconds and never goes back; the deadline is that of Redis.

        Raises InvalidSettings.
        """
        self._setting = settings.cache
        self._ttl_seconds = settings.cache_ttl_seconds
        self._metrics = metrics
        self._memory = memory = MemoryCache(settings.cache_max_bytes, clock=clock)
        self._shared: SharedCache | None = None
        self._caches: dict[LoadedModel, RowCache | None] = {}
        metrics.cache_entries.set_function(lambda: len(memory))
        metrics.cache_bytes.set_function(lambda: memory.bytes)
        if self._setting == "redis":
            redis = open_redis(storage)
            if redis is None:
                raise InvalidSettings(["CACHE=redis needs REDIS_URL: where answers are kept for all processes"])
            self._shared = SharedCache(redis, metrics, deadline_seconds)

    async def __aenter__(self) -> Self:
        if self._shared:
            self._shared.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._shared:
            await self._shared.stop()

    @property
    def state(self) -> CacheState:
        """`off` or `memory` by the setting; with Redis `up`, or `down` while this process remembers alone."""
        if self._setting == "off":
            return "off"
        return self._shared.state if self._shared else "memory"

    def of(self, model: "LoadedModel") -> RowCache | None:
        """The cache of a version; None where the setting, the model's rules or its speed say that it has none."""
        try:
            return self._caches[model]
        except KeyError:
            return self._open(model)

    def forget(self, model: "LoadedModel") -> None:
        """The version is not served any more; what is kept of it goes as it ages."""
        self._caches.pop(model, None)

    def use(self, model: "LoadedModel") -> CacheUse:
        """Where a version's answers are kept; `needless`: nowhere, since computing them takes no longer."""
        if self._setting == "off" or model.cache_rules.cache == "off":
            return "off"
        rows = self.of(model)
        if rows is None:
            return "needless"
        return "redis" if rows.is_shared else "memory"

    def _open(self, model: "LoadedModel") -> RowCache | None:
        found: RowCache | None = None
        if self._setting != "off" and model.cache_rules.cache != "off":
            pays = self._pays(model, "memory", MEMORY_SECONDS)
            shared = self._shared if pays and self._shared and self._pays(model, "redis", REDIS_SECONDS) else None
            seconds = model.cache_rules.ttl_seconds or self._ttl_seconds
            found = RowCache(model, seconds, self._memory, shared, self._metrics) if pays else None
        self._caches[model] = found
        return found

    @staticmethod
    def _pays(model: "LoadedModel", level: str, look_up_seconds: float) -> bool:
        seconds = model.cost.seconds(1)
        if seconds > look_up_seconds:
            return True
        log.info(
            "cache_needless",
            model=model.name,
            version=model.version,
            level=level,
            model_us=round(seconds * 1e6, 1),
            look_up_us=round(look_up_seconds * 1e6, 1),
        )
        return False
