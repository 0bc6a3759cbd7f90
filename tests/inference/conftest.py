"""What tests of lanes share: models that misbehave, and a lane whose records are kept in a list."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.inference.execution import Outcome
from app.inference.identifiers import new_ids
from app.inference.lane import Lane
from app.inference.turns import Part, Terms
from app.manifest import Outputs
from app.pipelines.base import Prediction
from app.registry.entries import ModelEntry
from app.registry.loader import LoadedModel, load_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from app.storage.records import Origin
from app.telemetry.metrics import Metrics
from tests.support.estimators import Brittle, Forgetful, Slow
from tests.support.versions import NUMBER, one_golden, write_classifier, write_version

OURS = ("tests.support.estimators",)
ORIGIN = Origin("request", "anonymous", "v2")
Load = Callable[[str], LoadedModel]


@dataclass
class Desk:
    """A lane, and what it has put on record."""

    lane: Lane
    metrics: Metrics
    recorded: list[float] = field(default_factory=list)

    def ask(self, numbers: Sequence[float], **terms: Any) -> Any:
        """The lane's future for rows of these numbers."""
        rows = [{"x": float(number)} for number in numbers]
        return self.lane.predict(new_ids(len(rows)), rows, Terms(ORIGIN, **terms))

    async def values(self, numbers: Sequence[float], **terms: Any) -> list[Any]:
        """The value of each row, or the code of its error."""
        return plain(await self.ask(numbers, **terms))


@dataclass
class Book:
    """What a registry knows, to be rewritten as a reload would do it."""

    generation: int = 0
    models: Mapping[str, ModelEntry] = field(default_factory=dict)

    def write(self, entry: ModelEntry) -> None:
        """This is all there is from now on."""
        self.models = {entry.name: entry}
        self.generation += 1


def plain(outcomes: Sequence[Outcome]) -> list[Any]:
    """The value of each outcome, or the code of its error."""
    return [o.value if isinstance(o, Prediction) else o.code for o in outcomes]


@contextmanager
def open_desk(model: LoadedModel) -> Iterator[Desk]:
    """Its lane, closed afterwards; to be opened where a loop runs."""
    metrics = Metrics()
    recorded: list[float] = []

    def record(parts: Sequence[Part], outcomes: Sequence[Outcome], _: float) -> None:
        recorded.extend(row["x"] for part in parts for row in part.call.rows[part.start : part.stop])
        assert sum(part.stop - part.start for part in parts) == len(outcomes)

    desk = Desk(Lane(model, metrics, record), metrics, recorded)
    try:
        yield desk
    finally:
        desk.lane.close()


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Models by name: `brittle`, `forgetful`, `slow`, and `toy`, which is cheap and well-behaved."""
    root: Path = tmp_path_factory.mktemp("models")
    brittle = Brittle().fit(np.zeros((2, 1)), ["less", "more"])
    outputs = Outputs(target="than ten", labels=("less", "more"))
    write_version(root, brittle, name="brittle", outputs=outputs, golden=one_golden("less"))
    regression: dict[str, Any] = {"task": "regression", "outputs": NUMBER}
    write_version(root, Forgetful().fit(None, None), name="forgetful", golden=one_golden(2.0), **regression)
    write_version(root, Slow().fit(None, None), name="slow", golden=one_golden(0.0, x=0.0), **regression)
    write_classifier(root)
    return lambda name: load_version(DirectorySource(root), name, 1, Trust(OURS))
