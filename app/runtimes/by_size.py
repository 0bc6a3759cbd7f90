"""BySize: for each number of rows the form that is fastest, and scikit-learn where a form raises."""

from collections.abc import Callable, Sequence
from typing import Any

import structlog

from app.pipelines.base import RawOutput
from app.runtimes.base import Runtime

log = structlog.get_logger(__name__)

Stage = tuple[int, Runtime]


class BySize:
    """`stages` are (most rows, form), ascending; beyond the last, the last form answers."""

    def __init__(self, stages: Sequence[Stage], reference: Runtime, fell_back: Callable[[], None]) -> None:
        self.name = describe_stages(stages)
        self.steady = all(form.steady for _, form in stages)
        self._stages = tuple(stages[:-1])
        self._last = stages[-1][1]
        self._reference = reference
        self._fell_back = fell_back

    def predict(self, inputs: Any, rows: int) -> RawOutput:
        """Answer for `rows` rows. Raises what scikit-learn raises."""
        form = self._last
        for most, small in self._stages:
            if rows <= most:
                form = small
                break
        try:
            return form.predict(inputs, rows)
        except Exception as error:
            if form is self._reference:
                raise
            answer = self._reference.predict(inputs, rows)  # what it raises is the caller's to see
            self._fell_back()
            log.error("runtime_fell_back", form=form.name, rows=rows, exc_info=error)
            return answer


def describe_stages(stages: Sequence[Stage]) -> str:
    """Such as "treelite to 300 rows, scikit-learn"."""
    names = [f"{form.name} to {most} {'row' if most == 1 else 'rows'}" for most, form in stages[:-1]]
    return ", ".join([*names, stages[-1][1].name])
