"""Shadows: a version that answers nobody is tried on rows that were answered, and what it says is compared.

Callers must not notice. So rows are offered when they are answered, to a queue that is short and drops; a thread of the
shadow's own takes small pieces from it and rests between them; and a shadow that hangs gets no more rows. A slice is
offered as it was worked on, so that both versions are timed on calls of one size.
"""

import asyncio
import ctypes
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

import structlog

from app.errors import FieldError
from app.inference.execution import Outcome, answer_together
from app.inference.traffic import Notices, hindrance, takes_all_of
from app.inference.turns import Part
from app.manifest import Manifest, NumberProfile
from app.pipelines.base import Prediction, Row
from app.registry.aliases import CHALLENGER, CHAMPION, SHADOW
from app.registry.entries import ModelEntry
from app.registry.registry import ModelRegistry
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

log = structlog.get_logger(__name__)

# What may wait, in rows of usual size: memory, and a comparison that is seconds behind is of no more use.
MOST_WAITING = 1024
# How long a call may take before the shadow is given up.
HANG_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_PIECE_SECONDS = 0.005
# After what it was at work it rests three times as long: a quarter of a core. And whoever was answered goes first.
_REST = 3
_LEAST_REST = 0.005
# Numbers that differ by less than this part of their spread in training agree.
SAME_WITHIN = 0.01
MOST_LABELS = 20
OTHER = "other"


class _Interrupted(BaseException):
    """Raised in the thread of a shadow that hangs."""


@dataclass(slots=True)
class _Offer:
    """Rows that went through `model` in one call, and came out as `answers`."""

    model: "LoadedModel"
    rows: Sequence[Row]
    answers: Sequence[Prediction]
    row_seconds: float
    work: float


class Shadows:
    """The trials of all models. Only for the event loop's thread."""

    def __init__(self, registry: ModelRegistry, metrics: Metrics) -> None:
        self._registry = registry
        self._metrics = metrics
        self._notices = Notices(SHADOW, metrics)
        self._generation = -1
        self._trials: dict[str, Trial] = {}
        self._leaving: list[Trial] = []
        self._timer: asyncio.TimerHandle | None = None

    def of(self, model: "LoadedModel") -> "Trial | None":
        """What is being tried beside this model; None, as nearly always, where nothing is."""
        if self._generation != self._registry.generation:
            self._renew()
        return self._trials.get(model.name)

    def close(self) -> None:
        """Nothing is tried any more."""
        for trial in self._trials.values():
            trial.close()
        if self._timer is not None:
            self._timer.cancel()

    def _renew(self) -> None:
        self._generation = self._registry.generation
        before, self._trials = self._trials, {}
        wanted = {e.name: e for e in self._registry.models.values() if SHADOW in e.aliases and e.traffic.shadow_share}
        for name, entry in wanted.items():
            shadow = entry.versions[entry.aliases[SHADOW]].model if hindrance(entry, SHADOW) is None else None
            if shadow is None:
                continue
            known = before.get(name)
            trial = before.pop(name) if known is not None and known.shadow is shadow else self._begin(shadow)
            trial.adopt(entry)
            self._trials[name] = trial
        for trial in before.values():
            self._end(trial)
        self._notices.update(wanted, {name for name, trial in self._trials.items() if trial.hung})
        if self._timer is None and (self._trials or self._leaving):
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _begin(self, shadow: "LoadedModel") -> "Trial":
        log.info("shadow_began", model=shadow.name, version=shadow.version)
        return Trial(shadow, self._metrics)

    def _end(self, trial: "Trial") -> None:
        log.info("shadow_ended", model=trial.shadow.name, version=trial.shadow.version)
        trial.close()
        self._leaving.append(trial)

    def _look(self) -> None:
        """Once a second: has anything changed while nobody asked, does a shadow hang, and has the last one ended."""
        self._timer = None
        for name, trial in self._trials.items():
            if trial.hangs() and not trial.hung:
                trial.give_up()
                self._notices.say(name, trial.shadow.version, "hung")
        for trial in (*self._trials.values(), *self._leaving):
            if trial.hangs():
                trial.interrupt()
        self._leaving = [trial for trial in self._leaving if trial.alive]
        self._renew()


class Trial:
    """One version as the shadow of others. What its thread uses, nobody else changes."""

    def __init__(self, shadow: "LoadedModel", metrics: Metrics) -> None:
        self.shadow = shadow
        self.hung = False
        self._metrics = metrics
        self._closed = False
        self._share = 0.0
        self._beside: frozenset[int] = frozenset()
        self._queue: SimpleQueue[_Offer | None] = SimpleQueue()
        self._offered = self._taken = 0.0  # work: the one is the loop's, the other the thread's
        self._since = 0.0
        self._thread: Thread | None = None
        self._comparisons: dict[int, _Comparison] = {}
        self._said_failed = False

    def adopt(self, entry: ModelEntry) -> None:
        """Be the shadow of this model's champion and challenger, by the rules that it has now."""
        self._share = entry.traffic.shadow_share
        answering = {entry.aliases.get(CHAMPION, 0), entry.aliases.get(CHALLENGER, 0)}
        self._beside = frozenset(answering - {0, self.shadow.version})

    @property
    def alive(self) -> bool:
        """Whether its thread still runs."""
        return self._thread is not None and self._thread.is_alive()

    def offer(self, model: "LoadedModel", parts: Sequence[Part], outcomes: Sequence[Outcome], seconds: float) -> None:
        """A slice that `model` has answered in so many seconds: it is taken, or left out by the rules, or dropped."""
        if self.hung or model.version not in self._beside:
            return
        if self._share < 1 and random.random() >= self._share:  # noqa: S311 -- a sample, and no secret
            return
        rows = (row for part in parts for row in part.call.rows[part.start : part.stop])
        answered = [(row, found) for row, found in zip(rows, outcomes, strict=True) if isinstance(found, Prediction)]
        if not answered:
            return
        work = sum(sum(part.call.works[part.start : part.stop]) for part in parts)
        waiting = self._offered - self._taken
        if waiting > 0 and waiting + work > MOST_WAITING:
            self._drop(model.version, len(answered))
            return
        self._offered += work
        given, answers = zip(*answered, strict=True)
        self._queue.put(_Offer(model, given, answers, seconds / len(outcomes), work))
        if self._thread is None:
            name = f"shadow-{self.shadow.name}-{self.shadow.version}"
            self._thread = Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """It gets no more rows, and its thread ends after what it is doing."""
        self._closed = True
        self._empty()
        self._queue.put(None)

    def hangs(self) -> bool:
        """Whether its thread is in a call that should be over long since."""
        since = self._since
        return since > 0 and self.alive and time.perf_counter() - since > HANG_SECONDS

    def give_up(self) -> None:
        """It gets no more rows; what it has not come to is dropped."""
        self.hung = True
        self.close()

    def interrupt(self) -> None:
        """Raise in its thread: that ends Python code, but neither a sleep nor a library that does not come back."""
        thread = self._thread
        if thread is not None and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Interrupted))

    def _empty(self) -> None:
        while True:
            try:
                offer = self._queue.get_nowait()
            except Empty:
                return
            if offer is not None:
                self._drop(offer.model.version, len(offer.rows))

    def _drop(self, version: int, rows: int) -> None:
        shadow = self.shadow
        self._metrics.shadow_rows.labels(shadow.name, str(version), str(shadow.version), "dropped").inc(rows)

    def _run(self) -> None:
        from app.runtimes.threads import bound_numeric_threads  # noqa: PLC0415 -- scikit-learn's world, loaded by now

        bound_numeric_threads()
        try:
            self._work()
        except _Interrupted:
            log.warning("shadow_interrupted", model=self.shadow.name, version=self.shadow.version)

    def _work(self) -> None:
        rest = _LEAST_REST
        while (offer := self._queue.get()) is not None:
            for piece in self._pieces(offer):
                if rest >= _LEAST_REST:
                    time.sleep(rest)
                    rest = 0.0
                if self._closed:
                    return
                began = time.thread_time()
                self._try(piece)
                rest += _REST * (time.thread_time() - began)
            self._taken += offer.work
            del offer, piece  # or the last one would be kept until the next comes
            if self._queue.empty():
                rest += _LEAST_REST

    def _pieces(self, offer: _Offer) -> Iterator[_Offer]:
        """What takes the shadow a few milliseconds at a time, and one row in any case."""
        most = max(1, int(self.shadow.cost.rows_within(_PIECE_SECONDS) * len(offer.rows) / max(offer.work, 1.0)))
        for start in range(0, len(offer.rows), most):
            some = slice(start, start + most)
            yield _Offer(offer.model, offer.rows[some], offer.answers[some], offer.row_seconds, 0.0)

    def _try(self, offer: _Offer) -> None:
        comparison = self._comparisons.get(offer.model.version)
        if comparison is None:
            comparison = _Comparison(offer.model.manifest, self.shadow.manifest, self._metrics)
            self._comparisons[offer.model.version] = comparison
        rows, answers = offer.rows, offer.answers
        if not comparison.takes_all:
            read = zip(self.shadow.pipeline.validate(rows), answers, strict=True)
            taken = [(row, answer) for row, answer in read if not isinstance(row, FieldError)]
            comparison.count("refused", len(rows) - len(taken))
            if not taken:
                return
            rows, answers = zip(*taken, strict=True)
        try:
            said, seconds = self._ask(rows)
        except BaseException as error:
            comparison.count("failed", len(rows))
            if isinstance(error, _Interrupted):
                raise
            self._say_failed(error)
            return
        comparison.compare(answers, said)
        comparison.time(offer.row_seconds, seconds / len(rows))

    def _ask(self, rows: Sequence[Row]) -> tuple[list[Outcome], float]:
        """What it says, and how long that took, by the clock that the lane would take for it."""
        shadow = self.shadow
        clock = time.thread_time if shadow.runtime.steady else time.perf_counter
        with shadow.turn:
            self._since = time.perf_counter()
            try:
                began = clock()
                said = answer_together(shadow, rows)
                return said, clock() - began
            finally:
                self._since = 0.0

    def _say_failed(self, error: BaseException) -> None:
        if not self._said_failed:  # the metric tells how often
            self._said_failed = True
            log.warning("shadow_failed", model=self.shadow.name, version=self.shadow.version, exc_info=error)


class _Comparison:
    """What a shadow said beside one other version, counted."""

    def __init__(self, answering: Manifest, shadow: Manifest, metrics: Metrics) -> None:
        self.takes_all = takes_all_of(shadow, answering)
        self._pair = (answering.name, str(answering.version), str(shadow.version))
        self._metrics = metrics
        self._up = metrics.shadow_difference.labels(*self._pair, "up").observe
        self._down = metrics.shadow_difference.labels(*self._pair, "down").observe
        self._answer_seconds = metrics.shadow_seconds.labels(*self._pair, "answer").observe
        self._shadow_seconds = metrics.shadow_seconds.labels(*self._pair, "shadow").observe
        self._regression = answering.task == "regression"
        self._spread = _spread(answering)
        labels = [str(label) for label in (*answering.outputs.labels, *shadow.outputs.labels)]
        self._labels = frozenset(list(dict.fromkeys(labels))[:MOST_LABELS])

    def count(self, outcome: str, rows: int) -> None:
        """So many rows had that outcome."""
        if rows:
            self._metrics.shadow_rows.labels(*self._pair, outcome).inc(rows)

    def time(self, answer: float, shadow: float) -> None:
        """Seconds that a row of a call took."""
        self._answer_seconds(answer)
        self._shadow_seconds(shadow)

    def compare(self, answers: Sequence[Prediction], said: Sequence[Outcome]) -> None:
        """What was answered beside what the shadow says, row by row."""
        agrees = self._numbers_agree if self._regression else self._labels_agree
        agreed = sum(agrees(a, s) for a, s in zip(answers, said, strict=True) if isinstance(s, Prediction))
        self.count("agreed", agreed)
        self.count("flipped", len(answers) - agreed)

    def _numbers_agree(self, answer: Prediction, said: Prediction) -> bool:
        difference = (float(said.value) - float(answer.value)) / self._spread
        self._observe(difference)
        return abs(difference) <= SAME_WITHIN

    def _labels_agree(self, answer: Prediction, said: Prediction) -> bool:
        label, other = str(answer.value), str(said.value)
        if answer.probabilities and said.probabilities and label in said.probabilities:
            self._observe(said.probabilities[label] - answer.probabilities[label])
        if label == other:
            return True
        self._metrics.shadow_flips.labels(*self._pair, self._bounded(label), self._bounded(other)).inc()
        return False

    def _observe(self, difference: float) -> None:
        (self._up if difference >= 0 else self._down)(abs(difference))

    def _bounded(self, label: str) -> str:
        return label if label in self._labels else OTHER


def _spread(manifest: Manifest) -> float:
    """The standard deviation of the predictions in training; 1 where they had none."""
    profile = manifest.profile.prediction
    return profile.std if isinstance(profile, NumberProfile) and profile.std > 0 else 1.0
