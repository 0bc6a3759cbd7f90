"""PredictionService: the whole path of a prediction, the same for every protocol."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from app.config import StorageSettings
from app.errors import FieldError
from app.inference.cache import PredictionCache
from app.inference.identifiers import new_ids
from app.inference.lane import Lane, Outcome
from app.pipelines.base import Prediction, Row
from app.registry.registry import ModelRegistry
from app.storage.prediction_log import PredictionLog
from app.storage.records import Answered, Origin, Recorder, hash_key
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

# More rows than these are put into words on a thread, so that a large batch does not hold the event loop.
_RECORDED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request: an id and an outcome for each row, in the caller's order, all of one version."""

    model: "LoadedModel"
    ids: list[str]
    outcomes: list[Outcome]

    @property
    def failed(self) -> int:
        """How many rows have an error."""
        return sum(isinstance(outcome, FieldError) for outcome in self.outcomes)


class PredictionService:
    """Open it as an async context manager: leaving closes the lanes."""

    def __init__(
        self,
        registry: ModelRegistry,
        cache: PredictionCache,
        prediction_log: PredictionLog,
        storage: StorageSettings,
        metrics: Metrics,
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._log = prediction_log
        self._storage = storage
        self._metrics = metrics
        self._lanes: dict[LoadedModel, Lane] = {}
        self._recorders: dict[LoadedModel, Recorder] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for lane in self._lanes.values():
            lane.close()

    def choose(self, name: str, wanted: str) -> "LoadedModel":
        """The version that answers; held from here to the request's end. Raises what `ModelRegistry.resolve` does."""
        return self._registry.resolve(name, wanted)

    async def predict(
        self, model: "LoadedModel", candidates: Sequence[Row | FieldError], origin: Origin, started: float
    ) -> Answer:
        """Predict the valid rows among the candidates; what validation found wrong passes through in its place.

        Every row that the model was asked about is on record when this returns; `started` is when the request came, by
        `time.perf_counter`. Raises Overloaded when too much is waiting for the model, and LogUnavailable.
        """
        self._log.admit()
        rows = [row for row in candidates if not isinstance(row, FieldError)]
        predicted, cached = await self._ask(model, rows, origin.principal) if rows else ([], [])
        outcomes = predicted if len(rows) == len(candidates) else _merge(candidates, predicted)
        answer = Answer(model, new_ids(len(outcomes)), _number_failures(outcomes))
        if rows and self._log.policy != "off":
            await self._record(answer, candidates, cached, origin, (time.perf_counter() - started) * 1000)
        self._count(model, answer.outcomes)
        return answer

    async def _ask(self, model: "LoadedModel", rows: Sequence[Row], subject: str) -> tuple[list[Outcome], list[bool]]:
        """Outcomes of valid rows, and which of them the model was not asked for."""
        lane, cache = self._lane(model), self._cache.of(model)
        if cache is None:
            return await lane.predict(rows), [False] * len(rows)
        return await cache.answer(rows, subject, lane.predict)

    async def _record(
        self,
        answer: Answer,
        candidates: Sequence[Row | FieldError],
        cached: Sequence[bool],
        origin: Origin,
        latency_ms: float,
    ) -> None:
        recorder, following = self._recorder(answer.model), iter(cached)
        asked = [
            Answered(identifier, row, outcome, next(following))
            for identifier, row, outcome in zip(answer.ids, candidates, answer.outcomes, strict=True)
            if not isinstance(row, FieldError)
        ]
        if len(asked) <= _RECORDED_AT_ONCE:
            self._log.record(recorder.frames(asked, origin, latency_ms), len(asked))
        else:
            frames = await asyncio.to_thread(recorder.frames, asked, origin, latency_ms)
            await asyncio.to_thread(self._log.record, frames, len(asked))

    def _recorder(self, model: "LoadedModel") -> Recorder:
        recorder = self._recorders.get(model)
        if recorder is None:
            key = hash_key(self._storage) if model.log_rules.hashes else b""
            recorder = self._recorders[model] = Recorder(model.manifest, model.log_rules, key)
        return recorder

    def _lane(self, model: "LoadedModel") -> Lane:
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes[model] = Lane(model, self._metrics)
        return lane

    def _count(self, model: "LoadedModel", outcomes: Sequence[Outcome]) -> None:
        labels = model.name, str(model.version)
        classifies = bool(model.manifest.outputs.labels)
        counts = Counter(
            (True, str(o.value) if classifies else "") if isinstance(o, Prediction) else (False, o.code)
            for o in outcomes
        )
        for (answered, last), count in counts.items():
            counter = self._metrics.predictions if answered else self._metrics.row_errors
            counter.labels(*labels, last).inc(count)


def _merge(candidates: Sequence[Row | FieldError], predicted: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes of the valid rows, back between the invalid ones."""
    following = iter(predicted)
    return [candidate if isinstance(candidate, FieldError) else next(following) for candidate in candidates]


def _number_failures(outcomes: list[Outcome]) -> list[Outcome]:
    """A failure inside the model does not know its row; its place in the request does."""
    return [
        replace(outcome, row=position) if isinstance(outcome, FieldError) and outcome.row is None else outcome
        for position, outcome in enumerate(outcomes)
    ]
