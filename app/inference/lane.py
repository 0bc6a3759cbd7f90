"""A lane: the one thread on which one version of a model works.

Model work never holds the event loop. One thread for a version also means that its estimator is never called twice at
once, which scikit-learn does not promise to survive; and a slow model keeps only its own callers waiting.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

import structlog

from app.errors import FieldError, Overloaded
from app.pipelines.base import Prediction, Row
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

log = structlog.get_logger(__name__)

Outcome = Prediction | FieldError
FEW_CALLS = 8
MOST_SECONDS = 10.0
MOST_ROWS = 100_000
_NEWEST_WEIGHS = 0.2
# A model that fails on so many single rows fails on everything; trying each alone would take the lane for minutes.
_MOST_BLAMED = 64
_MODEL_FAILED = FieldError("model_failed", "the model failed on this row")


@dataclass(slots=True)
class _Call:
    rows: Sequence[Row]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[list[Outcome]]


@dataclass(slots=True)
class _Failures:
    """What went wrong in one call, for one log line."""

    rows: int = 0
    first: BaseException | None = field(default=None)


class Lane:
    """Calls for one model, one after the other; what could not be answered soon is refused at once."""

    def __init__(self, model: "LoadedModel", metrics: Metrics) -> None:
        self._model = model
        labels = (model.name, str(model.version))
        self._seconds = metrics.model_seconds.labels(*labels)
        self._rows = metrics.call_rows.labels(*labels)
        self._waiting = metrics.waiting.labels(*labels)
        self._calls_waiting = 0
        self._rows_waiting = 0
        self._call_seconds = model.cost.seconds(1)
        self._running_since: float | None = None
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        # A daemon: an estimator that hangs must not keep the process from ending.
        self._thread = Thread(target=self._work, name=f"lane-{model.name}-{model.version}", daemon=True)
        self._thread.start()

    async def predict(self, rows: Sequence[Row]) -> list[Outcome]:
        """An outcome for each row, in order: a row that makes the model raise fails alone. Raises Overloaded."""
        self._admit(len(rows))
        loop = asyncio.get_running_loop()
        call = _Call(rows, loop, loop.create_future())
        self._count(1, len(rows))
        self._calls.put(call)
        try:
            return await call.future
        finally:
            self._count(-1, -len(rows))

    def close(self) -> None:
        """Let the thread end after what it is doing."""
        self._calls.put(None)

    def _admit(self, rows: int) -> None:
        """Refuse what would wait too long, by the time that recent calls took, or would fill the memory."""
        since = self._running_since
        running = 0.0 if since is None else time.perf_counter() - since
        seconds = self._calls_waiting * max(self._call_seconds, running)
        too_long = self._calls_waiting >= FEW_CALLS and seconds > MOST_SECONDS
        if too_long or (self._calls_waiting and self._rows_waiting + rows > MOST_ROWS):
            waiting = f"{self._calls_waiting} calls with {self._rows_waiting} rows are waiting for {self._model.name}"
            raise Overloaded(waiting, retry_after=max(1, math.ceil(seconds)))

    def _count(self, calls: int, rows: int) -> None:
        self._calls_waiting += calls
        self._rows_waiting += rows
        self._waiting.set(self._calls_waiting)

    def _work(self) -> None:
        from app.runtimes.threads import bound_numeric_threads  # noqa: PLC0415 -- scikit-learn's world, loaded by now

        bound_numeric_threads()  # OpenMP counts its threads for each thread that calls it
        while (call := self._calls.get()) is not None:
            if call.future.cancelled():
                continue
            outcomes = self._run(call.rows)
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                call.loop.call_soon_threadsafe(_resolve, call.future, outcomes)

    def _run(self, rows: Sequence[Row]) -> list[Outcome]:
        self._running_since = started = time.perf_counter()
        failures = _Failures()
        outcomes = self._answer(rows, failures)
        self._running_since = None
        seconds = time.perf_counter() - started
        self._call_seconds += _NEWEST_WEIGHS * (seconds - self._call_seconds)
        self._seconds.observe(seconds)
        self._rows.observe(len(rows))
        if failures.first is not None:
            name, version = self._model.name, self._model.version
            log.error("model_failed", model=name, version=version, rows=failures.rows, exc_info=failures.first)
        return outcomes

    def _answer(self, rows: Sequence[Row], failures: _Failures) -> list[Outcome]:
        """All rows at once; when the model raises, each half by itself, down to the rows that are to blame."""
        model = self._model
        try:
            return list(model.pipeline.postprocess(model.runtime.predict(model.pipeline.preprocess(rows), len(rows))))
        except BaseException as error:  # noqa: BLE001 -- an estimator that calls sys.exit must not end the service
            if len(rows) == 1 or failures.rows >= _MOST_BLAMED:
                failures.rows += len(rows)
                failures.first = failures.first or error
                return [_MODEL_FAILED] * len(rows)
        middle = len(rows) // 2
        return [*self._answer(rows[:middle], failures), *self._answer(rows[middle:], failures)]


def _resolve(future: asyncio.Future[list[Outcome]], outcomes: list[Outcome]) -> None:
    if not future.done():
        future.set_result(outcomes)
