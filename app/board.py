"""Board: what the processes of one service tell one another, in memory that they share.

The memory is anonymous and made before the first fork: there is no file, so no disk that can be full, and nothing stays
behind. Each word has one writer at a time, and is written by one store, so nobody locks, and nobody waits for a process
that is frozen or dead.

A worker sits in a slot. Two generations of workers may be there at once while one takes over from the other, so each
generation has slots of its own: one for each worker, and one for a worker that comes before the one that it replaces
is gone.
"""

import mmap
import os
import time
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

Reason = Literal["killed", "hung", "memory", "start_failed"]
REASONS: tuple[Reason, ...] = get_args(Reason)

_FREE, _STARTING, _SERVING, _LEAVING = range(4)
_WORD = 8
_GENERATIONS = 2


class Board:
    """For `workers` processes; made by the supervisor, inherited by all others. `slot` is this process's own."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.slot: int | None = None
        self._per_generation = workers + 1
        self.slots = _GENERATIONS * self._per_generation
        self._stopping = _words(1)
        self._serves = _words(_GENERATIONS)
        self._announced = _words(1)
        self._states = _words(self.slots)
        self._pids = _words(self.slots)
        self._models = _words(self.slots)
        self._private = _words(self.slots)
        self._beats = memoryview(mmap.mmap(-1, self.slots * _WORD)).cast("d")
        self._restarts = _words(_GENERATIONS * len(REASONS))

    @staticmethod
    def regions(count: int, size: int) -> list[memoryview]:
        """Further shared memory: `count` pieces of `size` bytes; pages that nobody writes to cost nothing."""
        whole = memoryview(mmap.mmap(-1, count * size))
        return [whole[at : at + size] for at in range(0, count * size, size)]

    # The service as a whole, which the supervisor writes.

    @property
    def stopping(self) -> bool:
        """Whether the service stops; a worker may leave without that."""
        return bool(self._stopping[0])

    def stop(self) -> None:
        """From now on the service stops."""
        self._stopping[0] = 1

    def serves(self, generation: int) -> bool:
        """Whether all workers of that generation have served at once."""
        return self._serves[generation % _GENERATIONS] == generation + 1

    # Generations, which their templates write.

    def slots_of(self, generation: int) -> range:
        """The slots that its workers have."""
        first = generation % _GENERATIONS * self._per_generation
        return range(first, first + self._per_generation)

    def note_serving(self, generation: int) -> None:
        """All workers of that generation serve."""
        self._serves[generation % _GENERATIONS] = generation + 1

    def note_restart(self, generation: int, reason: Reason) -> None:
        """A worker had to be replaced."""
        self._restarts[generation % _GENERATIONS * len(REASONS) + REASONS.index(reason)] += 1

    def restarts(self) -> Iterator[tuple[Reason, int]]:
        """How many workers had to be replaced since the service began."""
        for place, reason in enumerate(REASONS):
            yield reason, sum(self._restarts[place :: len(REASONS)])

    def private_models(self, slots: Iterable[int]) -> int:
        """The most memory, in bytes, that one of these workers has for models that it shares with no other."""
        return max((self._private[slot] for slot in slots if self._states[slot] != _FREE), default=0)

    def clear(self, slot: int) -> None:
        """Nobody is there any more."""
        self._states[slot] = _FREE
        self._private[slot] = 0
        self._pids[slot] = 0

    # Slots, which their workers write.

    def enter(self, slot: int) -> None:
        """This process is the worker of that slot, and starts."""
        self.slot = slot
        self._pids[slot] = os.getpid()
        self.beat()
        self._states[slot] = _STARTING

    def note_worker_serving(self) -> None:
        """This worker takes requests."""
        self._states[self.own_slot] = _SERVING

    def first_to_serve(self) -> bool:
        """Whether no worker has been asked this before: one of them tells the user how to make the first call.

        Two that are asked at the same moment may both be told yes.
        """
        first, self._announced[0] = not self._announced[0], 1
        return first

    def note_leaving(self) -> None:
        """This worker takes no more connections."""
        self._states[self.own_slot] = _LEAVING

    def beat(self) -> None:
        """This worker's event loop turns."""
        self._beats[self.own_slot] = time.monotonic()

    def note_models(self, digest: int, private_bytes: int) -> None:
        """What this worker serves, as a number, and how much memory of its own it has for models."""
        self._models[self.own_slot] = digest
        self._private[self.own_slot] = private_bytes

    @property
    def models_skew(self) -> int:
        """How many different things the workers serve that take requests, beyond the one that they should."""
        return max(0, len({self._models[slot] for slot in range(self.slots) if self.serving(slot)}) - 1)

    def pid(self, slot: int) -> int:
        """The worker there; 0 for none."""
        return self._pids[slot]

    def serving(self, slot: int) -> bool:
        """Whether the worker there takes requests."""
        return self._states[slot] == _SERVING

    def last_beat(self, slot: int) -> float:
        """When the event loop there last turned, by the machine's monotonic clock."""
        return self._beats[slot]

    @property
    def serving_workers(self) -> int:
        """How many take requests now."""
        return sum(self.serving(slot) for slot in range(self.slots))

    @property
    def own_slot(self) -> int:
        """The slot of this process, which is a worker."""
        assert self.slot is not None, "only a worker has a slot"  # noqa: S101 -- for the type checker, and our own code
        return self.slot


def _words(count: int) -> "memoryview[int]":
    """Aligned words of eight bytes, all 0."""
    return memoryview(mmap.mmap(-1, count * _WORD)).cast("Q")
