"""Supervisor: one generation of workers, or for a moment two, for as long as the service lives.

It holds the socket, and next to nothing that could go wrong. SIGTERM and SIGINT stop the service, SIGHUP brings a new
generation: everything is loaded anew, and the old workers leave once all of the new ones serve. So does a quiet minute
in which workers have much memory for versions that came while they ran: a new generation shares them.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from app.board import Board
from app.workers.processes import Patience, ended_children, fork, hold, release, tell, wait

log = structlog.get_logger(__name__)

_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
_TICK_SECONDS = 0.1
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_GOOD_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Sharing:
    """How much memory workers may have for models that each has for itself, and how long nothing must have changed."""

    above_bytes: int
    after_seconds: float


NEVER = Sharing(0, 0.0)


@dataclass(slots=True)
class _Template:
    generation: int
    pid: int
    told: bool = False


class Supervisor:
    """`run` returns the exit code of the service."""

    def __init__(
        self,
        board: Board,
        generation: Callable[[int], int],
        stop_seconds: float,
        sharing: Sharing = NEVER,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """`generation(number)` is what a template does, in a process of its own; it returns its exit code.

        Templates that have not ended `stop_seconds` after they were told are killed, and their workers with them.
        `sharing` says when a new generation begins for the sake of models that workers do not share.
        `on_stop` is called here when they are told: to let go of what only workers should hold.
        """
        self._board = board
        self._generation = generation
        self._stop_seconds = stop_seconds
        self._sharing = sharing
        self._private = (0, 0.0)  # bytes, and since when
        self._on_stop = on_stop
        self._next = 0
        self._serving: _Template | None = None
        self._coming: _Template | None = None
        self._leaving: _Template | None = None
        self._patience = Patience(_SHORTEST_PAUSE, _LONGEST_PAUSE, _GOOD_SECONDS)
        self._reload_wanted = False
        self._kill_at = float("inf")
        self._served = False
        self._code: int | None = None

    def run(self) -> int:
        """Until the service is asked to stop, or cannot start."""
        hold(_SIGNALS)
        while self._code is None or self._templates:
            self._share_again()
            self._begin_generation()
            self._heed(wait(_SIGNALS, _TICK_SECONDS))
            for pid, code in ended_children():
                self._ended(pid, code)
            self._take_over()
            if time.monotonic() >= self._kill_at:
                self._kill()
        return self._code

    @property
    def _templates(self) -> list[_Template]:
        return [template for template in (self._serving, self._coming, self._leaving) if template]

    def _begin_generation(self) -> None:
        """When none is there, or another is wanted, and the slots of the last but one are free."""
        wanted = self._reload_wanted or (self._serving is None and self._patience.over)
        if self._code is not None or self._coming or self._leaving or not wanted:
            return
        self._reload_wanted = False
        self._patience.began()
        number, self._next = self._next, self._next + 1
        pid = fork(lambda: self._be_a_template(number))
        self._coming = _Template(number, pid)
        log.info("generation_begins", generation=number, pid=pid)

    def _share_again(self) -> None:
        """Once nothing has changed for a while: versions often come one soon after another."""
        if not self._sharing.after_seconds or self._serving is None or self._coming or self._leaving:
            return
        now = time.monotonic()
        private = self._board.private_models(self._board.slots_of(self._serving.generation))
        if private != self._private[0]:
            self._private = (private, now)
        if private > self._sharing.above_bytes and now - self._private[1] > self._sharing.after_seconds:
            log.info("models_shared_again", private_bytes=private)
            self._private = (0, now)
            self._reload_wanted = True

    def _be_a_template(self, number: int) -> int:
        os.setpgid(0, 0)  # a Ctrl-C at the terminal is for the supervisor, who passes it on
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # Until it has workers to look after, being told to stop ends it at once.
        for number_of_signal in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number_of_signal, signal.SIG_DFL)
        release(_SIGNALS)
        return self._generation(number)

    def _heed(self, number: int | None) -> None:
        if number == signal.SIGHUP and self._code is None:
            log.info("reload_wanted")
            self._reload_wanted = True
        elif number in (signal.SIGTERM, signal.SIGINT):
            self._stop(number)

    def _stop(self, number: int) -> None:
        """A second time it is passed on, too, and makes them haste."""
        if self._code is None:
            self._code = 0
            self._kill_at = time.monotonic() + self._stop_seconds
            self._board.stop()
            self._on_stop()
        for template in self._templates:
            template.told = True
            tell(template.pid, number)

    def _kill(self) -> None:
        self._kill_at = float("inf")
        for template in self._templates:
            log.error("generation_did_not_leave", generation=template.generation, pid=template.pid)
            tell(template.pid, signal.SIGKILL)
            self._code = 1

    def _ended(self, pid: int, code: int) -> None:
        template = next((template for template in self._templates if template.pid == pid), None)
        if template is None:
            return
        for slot in self._board.slots_of(template.generation):
            self._board.clear(slot)
        was_serving = template is self._serving
        if was_serving:
            self._serving = None
        elif template is self._coming:
            self._coming = None
        else:
            self._leaving = None
        if self._code is not None:
            loading = template.told and not was_serving and code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
            self._code = self._code or (0 if loading else code)
        elif not self._served and code:
            self._code = code  # it has said why
        elif not template.told:
            pause = self._patience.failed()
            log.error("generation_ended", generation=template.generation, pid=pid, code=code, pause=pause)

    def _take_over(self) -> None:
        """The new generation's workers serve: those before may leave."""
        coming = self._coming
        if coming is None or not self._board.serves(coming.generation):
            return
        self._served = True
        self._coming, self._leaving, self._serving = None, self._serving, coming
        log.info("generation_serves", generation=coming.generation, workers=self._board.workers)
        if self._leaving:
            self._leaving.told = True
            tell(self._leaving.pid, signal.SIGTERM)
