"""Turns: what waits for a model. Callers take turns, so that nobody's flood makes the others wait for all of it."""

from asyncio import Future
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

import structlog

from app.errors import DeadlineExceeded
from app.inference.execution import Outcome
from app.pipelines.base import Row
from app.storage.records import Origin

log = structlog.get_logger(__name__)


class CallerGone(Exception):
    """Nobody waits for the answer any more; no work was done for it."""


class Receiver(Protocol):
    """Who is told what came of a call, once; a future is one."""

    def done(self) -> bool:
        """Whether nothing is waited for any more."""

    def set_result(self, result: list[Outcome], /) -> None:
        """An outcome for each row."""

    def set_exception(self, exception: Exception, /) -> None:
        """Why there are none."""


def _stays() -> bool:
    return False


@dataclass(slots=True)
class Terms:
    """Since when and by when an answer is wanted (by `time.perf_counter`), for whom, and whether somebody still waits.

    `subject` is who takes turns with others, and `origin` what the log says. Rows of a batch (`bulk`) give way to those
    that somebody waits for one by one.
    """

    origin: Origin
    subject: str = ""
    started: float = 0.0
    deadline: float = inf
    bulk: bool = False
    gone: Callable[[], bool] = _stays


@dataclass(slots=True, eq=False)
class Call:
    """Rows of one request; `works` says for each how many rows of usual size it is worth."""

    ids: Sequence[str]
    rows: Sequence[Row]
    works: Sequence[float]
    terms: Terms
    receiver: "Receiver | Future[list[Outcome]]"
    begun: int = 0  # rows that are answered, or being worked on
    outcomes: list[Outcome] = field(default_factory=list)

    def stopped(self, now: float) -> bool:
        """Whether work for it would be in vain; whoever still waits is told why."""
        if self.receiver.done():
            return True
        if now > self.terms.deadline:
            error = DeadlineExceeded("the time for an answer was over before the model had one")
            error.worked = self.begun > 0
            self.fail(error)
        elif self.terms.gone():
            self.fail(CallerGone())
        else:
            return False
        return True

    def fail(self, error: Exception) -> None:
        """No answer any more."""
        if self.receiver.done():
            return
        try:
            self.receiver.set_exception(error)
        except Exception:  # whatever becomes of one answer, the lane goes on
            log.exception("answer_failed")
        if isinstance(self.receiver, Future):
            self.receiver.exception()  # a request that was cancelled meanwhile does not ask

    def answered(self, outcomes: Sequence[Outcome]) -> None:
        """The outcomes of the next rows; with the last of them the request has its answer."""
        if self.receiver.done():
            return
        self.outcomes += outcomes
        if len(self.outcomes) == len(self.rows):
            try:
                self.receiver.set_result(self.outcomes)
            except Exception:  # as above
                log.exception("answer_failed")


@dataclass(slots=True)
class Part:
    """Rows of a call, from `start` to before `stop`, that are worked on in one piece."""

    call: Call
    start: int
    stop: int


class Turns:
    """Calls in the order of their coming, one caller after the other.

    Nearly always all that has come fits into the next piece of work; so nothing is put in its place before it has to
    wait.
    """

    def __init__(self) -> None:
        self._fresh: list[Call] = []
        self._waiting: dict[str, deque[Call]] = {}
        self._work_of: dict[str, float] = {}
        self.rows = 0
        self.work = 0.0

    def __bool__(self) -> bool:
        return self.rows > 0

    def __iter__(self) -> Iterator[Call]:
        self._put_in_place()
        return (call for calls in self._waiting.values() for call in calls)

    def push(self, call: Call, work: float) -> None:
        """Behind its caller's other calls; `work` is the sum of its works."""
        self._fresh.append(call)
        self.rows += len(call.rows)
        self.work += work

    def take(self, room: float, now: float, parts: list[Part]) -> float:
        """Add to `parts` what fits into `room`, and if there are none, one row in any case; returns its work."""
        if not self._waiting and self.work <= room:
            for call in self._fresh:
                if not call.stopped(now):
                    call.begun = len(call.rows)
                    parts.append(Part(call, 0, call.begun))
            taken, self.work, self.rows = self.work, 0.0, 0
            self._fresh.clear()
            return taken
        self._put_in_place()
        taken = 0.0
        while self._waiting and (taken < room or not parts):
            call = next(iter(self._waiting.values()))[0]
            if call.stopped(now):
                self._advance(call, len(call.rows))
                continue
            stop, work = _fitting(call, room - taken, needs_one=not parts)
            if stop == call.begun:
                break
            parts.append(Part(call, call.begun, stop))
            self._advance(call, stop)
            taken += work
        return taken

    def ahead(self, subject: str, work: float) -> float:
        """Work that comes before the end of a new call of so much, when all take turns."""
        self._put_in_place()
        mine = self._work_of.get(subject, 0.0) + work
        return mine + sum(min(other, mine) for name, other in self._work_of.items() if name != subject)

    def is_over_share(self, subject: str) -> bool:
        """Whether the caller has, beside others, more than an equal part of all that waits."""
        self._put_in_place()
        return len(self._work_of) > 1 and self._work_of.get(subject, 0.0) * len(self._work_of) > self.work

    def _put_in_place(self) -> None:
        for call in self._fresh:
            subject = call.terms.subject
            self._waiting.setdefault(subject, deque()).append(call)
            self._work_of[subject] = self._work_of.get(subject, 0.0) + sum(call.works)
        self._fresh.clear()

    def _advance(self, call: Call, stop: int) -> None:
        """The rows before `stop` wait no more, and the next turn is another caller's."""
        subject = call.terms.subject
        calls = self._waiting.pop(subject)
        work = call.works[0] if len(call.works) == 1 else sum(call.works[call.begun : stop])
        self.rows -= stop - call.begun
        self.work -= work
        self._work_of[subject] -= work
        call.begun = stop
        if stop == len(call.rows):
            calls.popleft()
        if calls:
            self._waiting[subject] = calls
            return
        del self._work_of[subject]
        if not self._waiting:
            self.work = 0.0  # what floating point has left over


def _fitting(call: Call, room: float, *, needs_one: bool) -> tuple[int, float]:
    """Up to which row the call fits into `room`, and the work of these rows."""
    stop, taken, works = call.begun, 0.0, call.works
    while stop < len(works) and (taken + works[stop] <= room or (needs_one and stop == call.begun)):
        taken += works[stop]
        stop += 1
    return stop, taken
