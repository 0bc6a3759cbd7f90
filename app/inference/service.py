"""PredictionService: the whole path of a prediction, the same for every protocol."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from app.errors import FieldError
from app.inference.identifiers import new_ids
from app.inference.lane import Lane, Outcome
from app.pipelines.base import Prediction, Row
from app.registry.registry import ModelRegistry
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel


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

    def __init__(self, registry: ModelRegistry, metrics: Metrics) -> None:
        self._registry = registry
        self._metrics = metrics
        self._lanes: dict[LoadedModel, Lane] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for lane in self._lanes.values():
            lane.close()

    def choose(self, name: str, wanted: str) -> "LoadedModel":
        """The version that answers; held from here to the request's end. Raises what `ModelRegistry.resolve` does."""
        return self._registry.resolve(name, wanted)

    async def predict(self, model: "LoadedModel", candidates: Sequence[Row | FieldError]) -> Answer:
        """Predict the valid rows among the candidates; what validation found wrong passes through in its place.

        Raises Overloaded when too much is waiting for the model.
        """
        rows = [row for row in candidates if not isinstance(row, FieldError)]
        predicted = await self._lane(model).predict(rows) if rows else []
        outcomes = predicted if len(rows) == len(candidates) else _merge(candidates, predicted)
        outcomes = _number_failures(outcomes)
        self._count(model, outcomes)
        return Answer(model, new_ids(len(outcomes)), outcomes)

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
