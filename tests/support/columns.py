"""Columns for tests: shared memory, limits on it, and, run as a program, real processes that draw on one plan.

`python -m tests.support.columns hammer PROCESSES COUNT ROWS` and `... crash PROCESSES COUNT` print a list of totals.
"""

import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from app.config import LimitSettings, StorageSettings
from app.errors import RateLimited
from app.limits.columns import REGION_BYTES, Columns
from app.limits.limiter import RateLimits
from app.telemetry.metrics import Metrics

_HANG_SECONDS = 30
_ROUNDS = 20
_REFUSALS = 3
_KILLED_EVERY = 500


def shared_regions(count: int, size: int = REGION_BYTES) -> list[memoryview]:
    """Anonymous memory that processes share which are forked from this one."""
    memory = memoryview(mmap.mmap(-1, count * size))
    return [memory[start : start + size] for start in range(0, count * size, size)]


def worker_limits(
    rate: str,
    regions: Sequence[memoryview],
    mine: int,
    clock: Callable[[], float] = time.monotonic,
    storage: StorageSettings | None = None,
) -> RateLimits:
    """Limits of the process that has this column; `storage` says where Redis is."""
    settings, storage = LimitSettings(rate_limit=rate), storage or StorageSettings()
    return RateLimits(settings, storage, Metrics(), clock=clock, columns=Columns(regions, mine))


def _hammer(processes: int, count: int, rows: int) -> list[int]:
    """All at once use up plan after plan; returns what of each was let in."""
    regions, words = shared_regions(2 * processes), shared_regions(2 * processes, 8 * _ROUNDS)
    reached = [region.cast("Q") for region in words[:processes]]
    admitted = [region.cast("Q") for region in words[processes:]]

    def process(number: int) -> None:
        limits = worker_limits(f"{count}/day", regions, number)
        for round_ in range(_ROUNDS):
            reached[number][round_] = 1
            _wait(lambda at=round_: all(each[at] for each in reached))  # type: ignore[misc]
            _use_up(limits, f"caller {round_}", rows, admitted[number], round_)

    for pid in [_forked(process, number) for number in range(processes)]:
        _, status = os.waitpid(pid, 0)
        assert status == 0
    return [sum(each[round_] for each in admitted) for round_ in range(_ROUNDS)]


def _crash(processes: int, count: int) -> list[int]:
    """Use up one plan, while one process after the other is killed and replaced; returns what was let in, and kills."""
    regions = shared_regions(2 * processes)
    admitted = [region.cast("Q") for region in shared_regions(processes, 8)]

    def process(number: int) -> None:
        _use_up(worker_limits(f"{count}/day", regions, number), "caller", 1, admitted[number], 0)

    def total() -> int:
        return sum(each[0] for each in admitted)

    pids = [_forked(process, number) for number in range(processes)]
    kills = 0
    while total() < count - _KILLED_EVERY:
        _wait(lambda enough=kills * _KILLED_EVERY: total() >= enough)  # type: ignore[misc]
        victim = kills % processes
        os.kill(pids[victim], signal.SIGKILL)
        os.waitpid(pids[victim], 0)
        pids[victim] = _forked(process, victim)
        kills += 1
    for pid in pids:
        os.waitpid(pid, 0)
    return [total(), kills]


def _use_up(limits: RateLimits, who: str, rows: int, admitted: memoryview, at: int) -> None:
    """Ask until it was refused several times; what was let in is counted at once."""
    refused = 0
    while refused < _REFUSALS:
        refused += 1
        with suppress(RateLimited):
            limits.settle(limits.admit(who, "iris"), rows)
            admitted[at] += rows
            refused = 0


def _wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _HANG_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        os.sched_yield()


def _forked(process: Callable[[int], None], number: int) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            process(number)
            status = 0
        finally:
            os._exit(status)
    return pid


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[2:]]
    found = _hammer(*numbers) if sys.argv[1] == "hammer" else _crash(*numbers)
    sys.stdout.write(json.dumps(found))
