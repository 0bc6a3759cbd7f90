"""The metrics of one worker among several: published in its slot, and shown together with those of the others.

The instruments stay in each worker's own memory, and count at the same cost as in one process. Only what is published
is shown, so nothing that anybody has seen is lost when a worker is killed.
"""

import asyncio
import contextlib
import marshal
import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import structlog

from app.board import Board
from app.telemetry.bulletins import Bulletins
from app.telemetry.families import Family, exposition_of
from app.telemetry.merging import Published, inherit, merge
from app.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

# What a worker that is killed may have counted and never shown.
_EVERY_SECONDS = 1.0
# How long the others may take to publish when they are asked; one that hangs is shown as it was.
_PATIENCE_SECONDS = 0.1

# Between two looks at the memory, and at the least how many times as long as one takes.
_MEASURE_SECONDS = 10.0
_REST = 1000

_NOTHING = Published([], [])


class Snapshots:
    """The instruments of a worker, made before the fork; while they are entered, on its loop, they are published."""

    def __init__(self, bulletins: Bulletins, board: Board, metrics: Metrics) -> None:
        """`board` says in whose slot this is, and whether who was in another one still lives."""
        self._bulletins = bulletins
        self._board = board
        self.metrics = metrics
        self._inherited = b""
        self._read: dict[int, tuple[int, Published]] = {}
        self._answered: list[int] = []
        self._moved = asyncio.Event()
        self._too_large = False

    async def __aenter__(self) -> Self:
        """Take the slot, and with it what was counted there."""
        self._mine = self._board.own_slot
        self._slot = self._bulletins.slots[self._mine]
        await self._measure_share()
        self._inherited = _dump(inherit(self._published(self._mine), self.metrics.families()))
        self._answered = self._asked()
        self._publish()
        if self._bulletins.bells:
            asyncio.get_running_loop().add_reader(self._bulletins.bells[self._mine], self._rung)
        self._tasks = [asyncio.create_task(work()) for work in (self._keep_publishing, self._keep_measuring)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish a last time; from then on the gauges are not shown any more."""
        for task in self._tasks:
            task.cancel()
        if self._bulletins.bells:
            asyncio.get_running_loop().remove_reader(self._bulletins.bells[self._mine])
        self._publish()
        self._slot.owner = 0

    async def refresh(self) -> None:
        """Publish, and have the others publish; returns when they have, or after a tenth of a second."""
        self._publish()
        slots = enumerate(self._bulletins.slots)
        others = {n: slot.sequence for n, slot in slots if n != self._mine and self._lives(n)}
        if not self._bulletins.bells:
            return
        self._slot.asked += 1
        for n in others:
            self._bulletins.ring(n)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while True:
                    self._moved.clear()
                    if not any(self._waits_for(n, sequence) for n, sequence in others.items()):
                        return
                    await self._moved.wait()

    def _waits_for(self, n: int, sequence: int) -> bool:
        return self._bulletins.slots[n].sequence == sequence and self._lives(n)

    def _lives(self, n: int) -> bool:
        """Whether who has published there is who is there."""
        owner = self._bulletins.slots[n].owner
        return owner != 0 and owner == self._board.pid(n)

    def exposition(self) -> bytes:
        """The text that Prometheus reads, of all workers as they have published; `Metrics` knows its type."""
        return exposition_of([*self.families(), *_of_board(self._board)])

    def families(self) -> list[Family]:
        """What all workers have published, as one."""
        slots = []
        for n in range(len(self._bulletins.slots)):
            alive = self._lives(n)  # before it is read: what is read then is its owner's, and not of one before it
            slots.append((self._published(n), alive))
        return merge(slots, self.metrics.merges)

    def _published(self, n: int) -> Published:
        former = self._read.get(n, (0, _NOTHING))
        if self._bulletins.slots[n].sequence == former[0] or not (found := self._bulletins.slots[n].read()):
            return former[1]
        sequence, snapshot = found
        own, inherited = marshal.loads(snapshot)  # noqa: S302 -- our own processes' words, and no code in them
        published = Published(_load(own), _load(marshal.loads(inherited)))  # noqa: S302 -- the same
        self._read[n] = (sequence, published)
        return published

    def _publish(self) -> None:
        if self._slot.write(marshal.dumps((_plain(self.metrics.families()), self._inherited))):
            # Not before the first one is there: it would make the gauges of its forerunner its own.
            self._slot.owner = os.getpid()
        elif not self._too_large:
            self._too_large = True
            log.warning("metrics_too_large", meaning="what this worker counts from now on is not shown")

    async def _keep_publishing(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            self._publish()

    async def _keep_measuring(self) -> None:
        while True:
            await asyncio.sleep(max(_MEASURE_SECONDS, _REST * self._measured_seconds))
            await self._measure_share()

    async def _measure_share(self) -> None:
        self._measured_seconds = await asyncio.to_thread(self.metrics.process.measure_share)

    def _asked(self) -> list[int]:
        return [slot.asked for slot in self._bulletins.slots]

    def _rung(self) -> None:
        """Somebody asks, or has answered. Each question is answered once, or two that ask would wake one another."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bulletins.bells[self._mine])
        asked = self._asked()
        asking = [n for n, times in enumerate(asked) if n != self._mine and times != self._answered[n]]
        self._answered = asked
        if asking:
            self._publish()
        for n in asking:
            self._bulletins.ring(n)
        self._moved.set()


def _of_board(board: Board) -> Iterable[Family]:
    """What supervisor and templates have said."""
    workers = {"wanted": board.workers, "serving": board.serving_workers}
    yield _family("presage_workers", "gauge", "Worker processes: wanted, and serving.", "state", workers)
    skew: dict[tuple[str, ...], tuple[float, ...]] = {(): (board.models_skew,)}
    meaning = "How many workers' answers to which version serves differ from the others'; 0 but for a moment."
    yield Family("presage_models_skew", "gauge", meaning, (), (), skew)
    restarts = dict(board.restarts())
    yield _family(
        "presage_worker_restarts", "counter", "Worker processes that were replaced, by why.", "reason", restarts
    )


def _family(name: str, kind: str, meaning: str, label: str, counts: Mapping[Any, int]) -> Family:
    return Family(name, kind, meaning, (label,), (), {(value,): (count,) for value, count in counts.items()})


def _plain(families: list[Family]) -> list[tuple[object, ...]]:
    return [tuple(family) for family in families]


def _dump(families: list[Family]) -> bytes:
    return marshal.dumps(_plain(families))


def _load(families: list[tuple[object, ...]]) -> list[Family]:
    return [Family(*family) for family in families]  # type: ignore[arg-type]
