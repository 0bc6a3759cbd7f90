"""Crew: the workers of one generation, kept at their number, whatever becomes of one of them."""

import faulthandler
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

import structlog

from app.board import Board, Reason
from app.workers.processes import Patience, anonymous_file, ended_children, fork, hold, own_bytes, release, tell, wait

log = structlog.get_logger(__name__)

_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
_TICK_SECONDS = 0.2
_MEASURE_SECONDS = 5.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
# A worker that has lasted so long is no sign that the next one will not.
_GOOD_SECONDS = 30.0
# Between SIGABRT, at which a worker writes where it hangs, and SIGKILL.
_LAST_WORDS_SECONDS = 1.0
_MOST_LAST_WORDS = 20_000
# Ends by a signal before any worker has served: more than that many are no accident.
_MOST_FALSE_STARTS = 3


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a worker may be silent and may take to leave, in seconds, and how much memory of its own it may have."""

    silent_seconds: float
    leave_seconds: float
    own_bytes: int


@dataclass(slots=True)
class _Worker:
    slot: int
    last_words: TextIO  # where its threads stood when a signal ended it
    pid: int = 0
    served: bool = False
    going: bool = False  # another one is to take its place
    told: bool = False  # to leave
    reason: Reason | None = None
    silent: float = 0.0
    last_beat: float = 0.0
    kill_at: float = field(default=float("inf"))


class Crew:
    """`run` returns once all workers are gone: after SIGTERM or SIGINT, or when none could start."""

    def __init__(
        self,
        board: Board,
        generation: int,
        bounds: Bounds,
        work: Callable[[int], int],
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """`work(slot)` is what a worker does, in a process of its own; it returns the exit code.

        `on_stop` is called here when the workers are told to leave: to let go of what only they should hold.
        """
        self._board = board
        self._generation = generation
        self._bounds = bounds
        self._work = work
        self._on_stop = on_stop
        self._workers: list[_Worker] = []
        self._patience = Patience(_SHORTEST_PAUSE, _LONGEST_PAUSE, _GOOD_SECONDS)
        self._served = False
        self._false_starts = 0
        self._stopping = False
        self._code = 0
        self._looked = time.monotonic()
        self._measure_at = self._looked + _MEASURE_SECONDS

    def run(self) -> int:
        """The exit code: 0 unless a worker did not leave in time, or what the workers could not start with."""
        hold(_SIGNALS)
        while True:
            self._fill()
            number = wait(_SIGNALS, _TICK_SECONDS)
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop(signal.Signals(number))
            for pid, code in ended_children():
                self._ended(pid, code)
            if self._stopping and not self._workers:
                return self._code
            self._look()

    def _fill(self) -> None:
        """As many workers as there should be, unless the last ones have failed too fast."""
        while not self._stopping and self._patience.over and self._missing > 0:
            taken = {worker.slot for worker in self._workers}
            slot = next((slot for slot in self._board.slots_of(self._generation) if slot not in taken), None)
            if slot is None:
                return
            self._patience.began()
            self._start(_Worker(slot, anonymous_file()))

    def _start(self, worker: _Worker) -> None:
        worker.pid = fork(lambda: self._be_a_worker(worker))
        self._workers.append(worker)

    @property
    def _missing(self) -> int:
        return self._board.workers - sum(not worker.going for worker in self._workers)

    def _be_a_worker(self, worker: _Worker) -> int:
        # Not among the lines of the log, which may be read by a machine.
        faulthandler.enable(worker.last_words)
        self._board.enter(worker.slot)
        release(_SIGNALS)
        return self._work(worker.slot)

    def _stop(self, number: signal.Signals) -> None:
        """All of them; what has been told already is told again, and makes haste."""
        if not self._stopping:
            self._stopping = True
            self._on_stop()
        for worker in self._workers:
            self._tell_to_leave(worker, number)

    def _tell_to_leave(self, worker: _Worker, number: signal.Signals = signal.SIGTERM) -> None:
        tell(worker.pid, number)
        if not worker.told:
            worker.told = True
            worker.kill_at = time.monotonic() + self._bounds.leave_seconds

    def _ended(self, pid: int, code: int) -> None:
        worker = next((worker for worker in self._workers if worker.pid == pid), None)
        if worker is None:  # a process that a library has started
            return
        self._workers.remove(worker)
        self._board.clear(worker.slot)
        with worker.last_words:
            worker.last_words.seek(0)
            stack = worker.last_words.read(_MOST_LAST_WORDS)
        if worker.told and worker.reason is None and not worker.going:
            self._code = self._code or code
            return
        if self._stopping:
            self._code = self._code or code or 1
        elif worker.served:
            self._replace(worker, code, worker.reason or "killed", stack)
        elif not self._served and self._is_no_accident(code):
            self._code = code or 1
            self._stop(signal.SIGTERM)
        else:
            self._replace(worker, code, worker.reason or "start_failed", stack)

    def _is_no_accident(self, code: int) -> bool:
        """Whether none will ever start: one has said so, or several were ended."""
        self._false_starts += 1
        return code < 128 or self._false_starts >= _MOST_FALSE_STARTS  # noqa: PLR2004 -- what a signal adds

    def _replace(self, worker: _Worker, code: int, reason: Reason, stack: str) -> None:
        self._board.note_restart(self._generation, reason)
        pause = 0.0 if worker.told else self._patience.failed()
        more = {"stack": stack} if stack else {}
        log.error("worker_ended", worker=worker.slot, pid=worker.pid, code=code, reason=reason, pause=pause, **more)

    def _look(self) -> None:
        """Whether each worker serves, whether its loop turns, whether it is late in leaving, whether it has grown."""
        now = time.monotonic()
        # What this process itself did not see, since it stood still with the machine, is no worker's silence.
        elapsed, self._looked = min(now - self._looked, 2 * _TICK_SECONDS), now
        for worker in self._workers:
            self._look_at(worker, elapsed, now)
        if now >= self._measure_at:
            self._measure_at = now + _MEASURE_SECONDS
            self._measure()
        self._relieve()
        if sum(worker.served and not worker.going for worker in self._workers) >= self._board.workers:
            self._served = True
            self._board.note_serving(self._generation)

    def _look_at(self, worker: _Worker, elapsed: float, now: float) -> None:
        if not worker.served and self._board.serving(worker.slot):
            worker.served = True
            log.info("worker_serving", worker=worker.slot, pid=worker.pid)
        beat = self._board.last_beat(worker.slot)
        worker.silent = worker.silent + elapsed if beat == worker.last_beat and not worker.told else 0.0
        worker.last_beat = beat
        if worker.reason is None and worker.silent > self._bounds.silent_seconds:
            worker.reason = "hung"
            worker.kill_at = now + _LAST_WORDS_SECONDS
            log.error("worker_hangs", worker=worker.slot, pid=worker.pid, seconds=round(worker.silent, 1))
            tell(worker.pid, signal.SIGABRT)
        if now >= worker.kill_at:
            worker.kill_at = float("inf")
            if worker.reason is None:
                self._code = 1
                log.error("worker_did_not_leave", worker=worker.slot, pid=worker.pid)
            tell(worker.pid, signal.SIGKILL)

    def _measure(self) -> None:
        """One worker at a time may be on its way out for its size, so that they do not all leave together."""
        if not self._bounds.own_bytes or self._stopping or any(worker.going for worker in self._workers):
            return
        for worker in self._workers:
            # Models that came while it ran are what it was asked to have.
            size = own_bytes(worker.pid) - self._board.private_models([worker.slot])
            if worker.served and size > self._bounds.own_bytes:
                worker.going, worker.reason = True, "memory"
                log.warning("worker_grown", worker=worker.slot, pid=worker.pid, own_bytes=size)
                return

    def _relieve(self) -> None:
        """Whoever has grown leaves once another serves in its place."""
        if self._missing > 0 or not all(worker.served for worker in self._workers):
            return
        for worker in self._workers:
            if worker.going and not worker.told:
                self._tell_to_leave(worker)
