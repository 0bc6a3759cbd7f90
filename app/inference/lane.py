"""A lane: where the calls of one version of a model wait, and how they come to be worked on.

Nobody waits for company: an idle model works at once, and what comes meanwhile is taken together. A cheap model works
on the event loop, on all rows that came in this turn of the loop, back to back: no hand-over, and its table stays in
the CPU's caches. A costly one has a thread. Either way work goes in slices, rows of batches behind those that somebody
waits for one by one, and an estimator is never called twice at once, which scikit-learn does not promise to survive.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

import structlog

from app.errors import PresageError
from app.inference.admission import MOST_ROWS, Pace, check_admission
from app.inference.execution import Outcome, answer_apart, answer_together
from app.inference.turns import Call, Part, Receiver, Terms, Turns
from app.pipelines.base import Row
from app.telemetry.metrics import Metrics, forget

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

log = structlog.get_logger(__name__)

Record = Callable[[Sequence[Part], Sequence[Outcome], float], None]

# A row that costs no more is predicted on the event loop: a hand-over to a thread costs as much.
INLINE_SECONDS = 0.0002
# How long the loop may be held at a stretch.
LOOP_SECONDS = 0.002
# On a thread a piece of work may be longer; but those who come meanwhile wait for its end.
_THREAD_SECONDS = 0.02
# Of each piece, what rows of batches get at least while single rows would fill all of it.
_BULK_SHARE = 0.25
_SWEEP_SECONDS = 0.05


class Lane:
    """Only for the event loop's thread; what it hands to its own thread, it takes back before the next."""

    def __init__(self, model: "LoadedModel", metrics: Metrics, record: Record) -> None:
        """`record` is told of each slice, and its seconds, before it is answered; what it raises is the answer."""
        self._model = model
        self._record = record
        labels = (model.name, str(model.version))
        self._observe_seconds = metrics.model_seconds.labels(*labels).observe
        self._observe_rows = metrics.call_rows.labels(*labels).observe
        metrics.waiting.labels(*labels).set_function(lambda: self.waiting)
        self._forget_waiting: Callable[[], None] = partial(forget, metrics.waiting, *labels)
        self._single, self._bulk = Turns(), Turns()
        alone = model.cost.seconds(1)
        self.inline = model.runtime.steady and alone <= INLINE_SECONDS
        self._pace = Pace(model.cost, LOOP_SECONDS if self.inline else max(_THREAD_SECONDS, 2 * alone))
        self._weigh = model.pipeline.weigh
        self._take_turn, self._leave_turn = model.turn.acquire, model.turn.release
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False
        self._working: list[Part] = []
        self._since = self._until = 0.0
        self._sweeping: asyncio.TimerHandle | None = None
        self._tasks: SimpleQueue[tuple[list[Part], list[Row], float] | None] = SimpleQueue()
        self._thread: Thread | None = None

    @property
    def waiting(self) -> int:
        """Rows that wait or are worked on."""
        return self._single.rows + self._bulk.rows + sum(part.stop - part.start for part in self._working)

    def predict(self, ids: Sequence[str], rows: Sequence[Row], terms: Terms) -> "asyncio.Future[list[Outcome]]":
        """An outcome for each row, in order: a row that makes the model raise fails alone.

        Raises what `check_admission` does, at once. The future may raise DeadlineExceeded, CallerGone, and what
        recording raises.
        """
        future: asyncio.Future[list[Outcome]] = (self._loop or self._on_this_loop()).create_future()
        self.ask(ids, rows, terms, future)
        return future

    def ask(self, ids: Sequence[str], rows: Sequence[Row], terms: Terms, receiver: Receiver) -> None:
        """The same; `receiver` is told, in the turn of the loop in which the model has answered."""
        works = self._weigh(rows)
        work = works[0] if len(works) == 1 else sum(works)
        self._admit(work, terms)
        (self._bulk if terms.bulk else self._single).push(Call(ids, rows, works, terms, receiver), work)
        if not self._scheduled:
            self._scheduled = True
            loop = self._loop or self._on_this_loop()
            loop.call_soon(self._turn, loop)

    def _on_this_loop(self) -> asyncio.AbstractEventLoop:
        """Asked once: up to Python 3.11, asking costs a system call."""
        self._loop = loop = asyncio.get_running_loop()
        return loop

    @property
    def _full(self) -> bool:
        return self._single.rows + self._bulk.rows >= MOST_ROWS

    def close(self) -> None:
        """Let the thread end after what it is doing; what waits is answered no more."""
        for call in (*self._single, *self._bulk):
            if isinstance(call.receiver, asyncio.Future):
                call.receiver.cancel()
        self._tasks.put(None)
        self._forget_waiting()

    def _admit(self, work: float, terms: Terms) -> None:
        now = time.perf_counter()
        busy = 0.0
        if not self._working:
            everything = (self._single.work + self._bulk.work + work) * self._pace.row_seconds
            if everything + LOOP_SECONDS < terms.deadline - now and not self._full:
                return  # as nearly always where a model is cheap
        else:
            # One that takes longer than predicted is as likely as not to take as long again.
            busy = self._until - now if now < self._until else now - self._since
        queue = self._single
        if terms.bulk:
            queue = self._bulk
            busy += self._single.work * self._pace.row_seconds
        check_admission(terms, work, queue, self._pace, busy, now)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the next slice and work on it, here or on the thread."""
        now = time.perf_counter()
        room = self._pace.slice_work
        parts: list[Part] = []
        work = self._single.take(room * (1 - _BULK_SHARE) if self._bulk else room, now, parts)
        if self._bulk:
            work += self._bulk.take(room - work, now, parts)
        if not parts:
            self._scheduled = False
            return
        rows = _rows(parts)
        # Here nobody waits for the estimator: while it is tried as a shadow, the thread does.
        if self.inline and work <= room and self._take_turn(blocking=False):
            # Here the time of the CPU counts: that the whole process had to wait says nothing about the model.
            began = time.thread_time()
            try:
                outcomes = answer_together(self._model, rows)
            except BaseException:  # noqa: BLE001 -- who is to blame is found out on the thread: it may take many calls
                self._leave_turn()
                self._hand_over(parts, rows, work, loop)
            else:
                self._leave_turn()
                self._finish(parts, outcomes, work, time.thread_time() - began, loop)
        else:
            self._hand_over(parts, rows, work, loop)

    def _hand_over(self, parts: list[Part], rows: list[Row], work: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._thread is None:
            # A daemon: an estimator that hangs must not keep the process from ending.
            name = f"lane-{self._model.name}-{self._model.version}"
            self._thread = Thread(target=self._work, args=(loop,), name=name, daemon=True)
            self._thread.start()
        self._working = parts
        self._since = time.perf_counter()
        self._until = self._since + self._pace.seconds(work)
        self._tasks.put((parts, rows, work))
        if self._sweeping is None:
            self._sweeping = loop.call_later(_SWEEP_SECONDS, self._sweep, loop)

    def _finish(
        self,
        parts: list[Part],
        outcomes: list[Outcome],
        work: float,
        seconds: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Hand out what came of a slice, and go on with the next in another turn of the loop."""
        self._working = []
        self._pace.took(work, seconds)
        self._observe_seconds(seconds)
        self._observe_rows(len(outcomes))
        self._answer(parts, outcomes, seconds)
        if self.inline and self._pace.seconds(1) > 2 * INLINE_SECONDS:
            self._leave_the_loop()
        if self._single or self._bulk:
            loop.call_soon(self._turn, loop)
        else:
            self._scheduled = False

    def _answer(self, parts: list[Part], outcomes: list[Outcome], seconds: float) -> None:
        try:
            self._record(parts, outcomes, seconds)
        except PresageError as error:
            for part in parts:
                part.call.fail(copy(error))  # each has a traceback of its own
            return
        at = 0
        for part in parts:
            end = at + part.stop - part.start
            part.call.answered(outcomes[at:end])
            at = end

    def _leave_the_loop(self) -> None:
        """It has become too costly for the loop: on callers' rows, or on this machine."""
        self.inline = False
        self._pace = Pace(self._model.cost, _THREAD_SECONDS)
        log.warning("lane_left_the_loop", model=self._model.name, version=self._model.version)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        from app.runtimes.threads import bound_numeric_threads  # noqa: PLC0415 -- scikit-learn's world, loaded by now

        bound_numeric_threads()  # OpenMP counts its threads for each thread that calls it
        while (task := self._tasks.get()) is not None:
            parts, rows, work = task
            with self._model.turn:
                started = time.perf_counter()
                outcomes = answer_apart(self._model, rows)
                seconds = time.perf_counter() - started
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(self._finish, parts, outcomes, work, seconds, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell whoever's time is over, also while the thread is busy, or hangs."""
        now = time.perf_counter()
        left = False
        for call in (*self._single, *self._bulk, *(part.call for part in self._working)):
            left = not call.stopped(now) or left
        self._sweeping = loop.call_later(_SWEEP_SECONDS, self._sweep, loop) if left or self._working else None


def _rows(parts: list[Part]) -> list[Row]:
    return [row for part in parts for row in part.call.rows[part.start : part.stop]]
