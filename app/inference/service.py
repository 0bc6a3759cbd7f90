"""PredictionService: the whole path of a prediction, the same for every protocol."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING, Any, Self

from app.config import StorageSettings
from app.errors import FieldError
from app.inference.cache import PredictionCache, RowCache
from app.inference.execution import Outcome
from app.inference.identifiers import new_ids
from app.inference.lane import Lane
from app.inference.shadow import Shadows
from app.inference.tally import Tally
from app.inference.traffic import Traffic
from app.inference.turns import Part, Terms
from app.pipelines.base import Row
from app.registry.registry import ModelRegistry
from app.storage.prediction_log import PredictionLog
from app.storage.records import Recorder, hash_key, timestamp
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel


# How often it is looked whether a version that is not served any more has answered all who had asked it.
_SWEEP_SECONDS = 0.1
# Of a large batch that is known already; it takes about a millisecond.
_RECORDED_AT_ONCE = 256


@dataclass(slots=True)
class Answer:
    """What came of a request: an id and an outcome for each row, in the caller's order, all of one version."""

    model: "LoadedModel"
    ids: list[str]
    outcomes: list[Outcome]

    @property
    def failed(self) -> int:
        """How many rows have an error."""
        return sum(isinstance(outcome, FieldError) for outcome in self.outcomes)


Told = Callable[[Answer | Exception], None]


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
        self.traffic = Traffic(registry, metrics)
        self._shadows = Shadows(registry, metrics)
        self._desks: dict[LoadedModel, _Desk] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._registry.on_change.append(self._sweep)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._shadows.close()
        for desk in self._desks.values():
            desk.close()

    def choose(self, name: str, wanted: str) -> "LoadedModel":
        """The version that answers; held from here to the request's end. Raises what `ModelRegistry.resolve` does."""
        return self._registry.resolve(name, wanted)

    async def predict(self, model: "LoadedModel", candidates: Sequence[Row | FieldError], terms: Terms) -> Answer:
        """Predict the valid rows among the candidates; what validation found wrong passes through in its place.

        Every row that the model was asked about is on record when this returns. Raises what the lane does where there
        is no time for the model, and LogUnavailable.
        """
        self._log.admit()
        desk = self._desks.get(model) or self._open(model)
        ids = new_ids(len(candidates))
        valid = [not isinstance(row, FieldError) for row in candidates]
        if all(valid):
            outcomes = await desk.predict(ids, candidates, terms)  # type: ignore[arg-type]  # they are rows
        else:
            rows: list[Row] = list(compress(candidates, valid))  # type: ignore[arg-type]
            predicted = await desk.predict(list(compress(ids, valid)), rows, terms) if rows else []
            outcomes = _merge(candidates, predicted)
        desk.tally.count(outcomes)
        return Answer(model, ids, _number_failures(outcomes))

    def ask(self, model: "LoadedModel", rows: Sequence[Any], terms: Terms, told: Told) -> None:
        """The same for valid rows, without a task that waits: `told` is called with the answer, or what went wrong.

        Only where nothing is cached. What is refused at once is raised.
        """
        self._log.admit()
        desk = self._desks.get(model) or self._open(model)
        ids = new_ids(len(rows))
        desk.lane.ask(ids, rows, terms, _Awaiting(model, desk.tally, ids, told))

    def _sweep(self) -> None:
        """Close the desks of versions that are not served any more, once those who wait there have their answers."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        gone = [model for model in self._desks if not self._registry.serves(model)]
        for model in gone:
            if self._desks[model].idle:
                self._desks.pop(model).close()
                self._cache.forget(model)
        later = asyncio.get_running_loop().call_later
        self._sweeping = later(_SWEEP_SECONDS, self._sweep) if any(model in self._desks for model in gone) else None

    def _open(self, model: "LoadedModel") -> "_Desk":
        """The version's desk; where only its rules have changed, the one that it has had: an estimator has one lane."""
        former = next((known for known in self._desks if known.runtime is model.runtime), None)
        if former is not None:
            desk = self._desks.pop(former)
            desk.go_by(model, self._cache.of(model))
        else:
            desk = _Desk(model, self._cache.of(model), self._log, self._storage, self._metrics, self._shadows)
        self._desks[model] = desk
        return desk


class _Awaiting:
    """A request that waits for the outcome of its row."""

    __slots__ = ("_ids", "_model", "_tally", "_told", "_waits")

    def __init__(self, model: "LoadedModel", tally: Tally, ids: list[str], told: Told) -> None:
        self._model, self._tally, self._ids, self._told = model, tally, ids, told
        self._waits = True

    def done(self) -> bool:
        """Whether it has been told."""
        return not self._waits

    def set_result(self, outcomes: list[Outcome]) -> None:
        """The model has answered."""
        self._waits = False
        self._tally.count(outcomes)
        self._told(Answer(self._model, self._ids, _number_failures(outcomes)))

    def set_exception(self, error: Exception) -> None:
        """There is no answer."""
        self._waits = False
        self._told(error)


class _Desk:
    """What one version needs to be served, made with its first request."""

    def __init__(
        self,
        model: "LoadedModel",
        cache: RowCache | None,
        prediction_log: PredictionLog,
        storage: StorageSettings,
        metrics: Metrics,
        shadows: Shadows,
    ) -> None:
        self._log = prediction_log
        self._storage = storage
        self._shadows = shadows
        self.go_by(model, cache)
        self.lane = Lane(model, metrics, self._note)
        self.tally = Tally(model.manifest, metrics)
        self._asking = 0

    def go_by(self, model: "LoadedModel", cache: RowCache | None) -> None:
        """Heed the model's rules for the log and the cache from now on."""
        self._model = model
        self._cache = cache
        key = hash_key(self._storage) if model.log_rules.hashes else b""
        self._recorder = Recorder(model.manifest, model.log_rules, key)

    @property
    def idle(self) -> bool:
        """Whether nobody waits for an answer."""
        return self.lane.waiting == 0 and self._asking == 0

    def close(self) -> None:
        """Let go of everything that knows the model; the lane and the desk know each other, which keeps both."""
        self.lane.close()
        del self.lane

    def predict(self, ids: Sequence[str], rows: Sequence[Row], terms: Terms) -> Awaitable[list[Outcome]]:
        """What the lane does; where there is a cache, only for the rows that it does not know."""
        if self._cache is None:
            return self.lane.predict(ids, rows, terms)
        return self._predict_unknown(self._cache, ids, rows, terms)

    async def _predict_unknown(
        self, cache: RowCache, ids: Sequence[str], rows: Sequence[Row], terms: Terms
    ) -> list[Outcome]:
        def compute(places: Sequence[int]) -> Awaitable[list[Outcome]]:
            return self.lane.predict([ids[i] for i in places], [rows[i] for i in places], terms)

        self._asking += 1
        try:
            outcomes, found = await cache.answer(rows, terms.origin.principal, compute, terms.deadline)
            await self._record_found(list(compress(zip(ids, rows, outcomes, strict=True), found)), terms)
        finally:
            self._asking -= 1
        return outcomes

    async def _record_found(self, found: Sequence[tuple[str, Row, Outcome]], terms: Terms) -> None:
        """Put rows on record that the lane has not seen, some at a time. Raises LogUnavailable."""
        if self._log.policy == "off":
            return
        latency_ms = (time.perf_counter() - terms.started) * 1000
        for start in range(0, len(found), _RECORDED_AT_ONCE):
            some, at = found[start : start + _RECORDED_AT_ONCE], timestamp()
            lines = self._recorder.frames(some, terms.origin, latency_ms, at, cached=True)
            self._log.record(b"".join(lines), len(lines))
            if start + _RECORDED_AT_ONCE < len(found):
                await asyncio.sleep(0)  # others have the event loop

    def _note(self, parts: Sequence[Part], outcomes: Sequence[Outcome], seconds: float) -> None:
        """Put a slice on record, and have the shadow try it where there is one. Raises LogUnavailable."""
        if self._log.policy != "off":
            self._record(parts, outcomes)
        if (trial := self._shadows.of(self._model)) is not None:
            trial.offer(self._model, parts, outcomes, seconds)

    def _record(self, parts: Sequence[Part], outcomes: Sequence[Outcome]) -> None:
        """Put a slice on record with one write, except for what nobody waits for any more. Raises LogUnavailable."""
        now, at = time.perf_counter(), timestamp()
        lines: list[bytes] = []
        end = 0
        for part in parts:
            call, rows, start = part.call, slice(part.start, part.stop), end
            end += part.stop - part.start
            if not call.receiver.done():
                answered = zip(call.ids[rows], call.rows[rows], outcomes[start:end], strict=True)
                latency_ms = (now - call.terms.started) * 1000
                lines += self._recorder.frames(answered, call.terms.origin, latency_ms, at)
        self._log.record(b"".join(lines), len(lines))


def _merge(candidates: Sequence[Row | FieldError], predicted: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes of the valid rows, back between the invalid ones."""
    following = iter(predicted)
    return [candidate if isinstance(candidate, FieldError) else next(following) for candidate in candidates]


def _number_failures(outcomes: list[Outcome]) -> list[Outcome]:
    """A failure inside the model does not know its row; its place in the request does."""
    if len(outcomes) == 1 and not isinstance(outcomes[0], FieldError):
        return outcomes  # as nearly always
    return [
        replace(outcome, row=position) if isinstance(outcome, FieldError) and outcome.row is None else outcome
        for position, outcome in enumerate(outcomes)
    ]
