"""Tally: the counters of one version's answers, their labels looked up once."""

from collections import Counter
from collections.abc import Callable, Sequence

from app.errors import FieldError
from app.inference.execution import Outcome
from app.manifest import Manifest
from app.telemetry.metrics import Metrics


class Tally:
    """Counts rows by the label predicted, and failures by their code."""

    def __init__(self, manifest: Manifest, metrics: Metrics) -> None:
        self._version = (manifest.name, str(manifest.version))
        self._metrics = metrics
        self._classifies = bool(manifest.outputs.labels)
        # A label may equal another of a different type, such as 1 and True; so the type is part of the key.
        self._of_label: dict[tuple[type, object], Callable[[float], None]] = {}

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Count the outcomes of one request."""
        if len(outcomes) == 1:
            self._add(outcomes[0], 1)
            return
        keys = [self._key(outcome) for outcome in outcomes]
        one_of = dict(zip(keys, outcomes, strict=True))
        for key, count in Counter(keys).items():
            self._add(one_of[key], count)

    def _key(self, outcome: Outcome) -> tuple[type, object]:
        if isinstance(outcome, FieldError):
            return FieldError, outcome.code
        return (type(outcome.value), outcome.value) if self._classifies else (float, None)

    def _add(self, outcome: Outcome, count: int) -> None:
        key = self._key(outcome)
        add = self._of_label.get(key)
        if add is None:
            add = self._of_label[key] = self._bind(outcome)
        add(count)

    def _bind(self, outcome: Outcome) -> Callable[[float], None]:
        if isinstance(outcome, FieldError):
            bound: Callable[[float], None] = self._metrics.row_errors.labels(*self._version, outcome.code).inc
            return bound
        label = str(outcome.value) if self._classifies else ""
        bound = self._metrics.predictions.labels(*self._version, label).inc
        return bound
