"""Cost: how long a call of a runtime takes by its number of rows, measured when a version is loaded."""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.runtimes.politeness import breathe

_SIZES = (1, 4, 16, 64, 256, 1000)
_REPEATS = 3
# A call that is predicted to take longer is not made only to be measured.
_LONGEST_CALL = 0.1


@dataclass(frozen=True, slots=True)
class Cost:
    """Measured `points` of (rows, seconds), rows ascending; between them, and beyond the last, a line."""

    points: tuple[tuple[int, float], ...]

    def seconds(self, rows: int) -> float:
        """What a call with so many rows takes."""
        if len(self.points) == 1:
            return self.points[0][1] * rows
        place = min(max(bisect_right(self.points, (rows, 0.0)), 1), len(self.points) - 1)
        (few, least), (many, most) = self.points[place - 1 : place + 1]
        return max(least + (most - least) * (rows - few) / (many - few), 0.0)

    def rows_within(self, seconds: float) -> int:
        """The most rows that a call of so many seconds can have; at least one."""
        if self.seconds(1) >= seconds:
            return 1
        low, high = 1, 2
        while high < 1 << 20 and self.seconds(high) <= seconds:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.seconds(middle) <= seconds else (low, middle)
        return low


UNKNOWN_COST = Cost(((1, 0.0),))


def measure_cost(
    call: Callable[[int], object],
    prepare: Callable[[int], object] = lambda _: None,
    longest: float = _LONGEST_CALL,
) -> Cost:
    """Time `call(rows)` for growing numbers of rows, the best of a few runs, as far as that stays short.

    `prepare(rows)` comes before, and is not timed. What takes long is timed once: it varies less.
    """
    points: list[tuple[int, float]] = []
    for rows in _SIZES:
        if points and Cost(tuple(points)).seconds(rows) > longest:
            break
        breathe()
        prepare(rows)
        seconds = _timed(call, rows)
        for _ in range(_REPEATS - 1):
            if seconds < longest / 10:
                breathe()
                seconds = min(seconds, _timed(call, rows))
        points.append((rows, seconds))
    return Cost(_ascending(points))


def _ascending(points: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """A call that took longer than one with more rows was disturbed: it takes no longer than that one."""
    found: list[tuple[int, float]] = []
    for rows, seconds in reversed(points):
        found.append((rows, min(seconds, found[-1][1]) if found else seconds))
    return tuple(reversed(found))


def least(costs: Sequence[Cost]) -> Cost:
    """The least that was measured for each number of rows: what came between a measurement only makes it longer."""
    seconds: dict[int, float] = {}
    for cost in costs:
        for rows, measured in cost.points:
            seconds[rows] = min(measured, seconds.get(rows, measured))
    return Cost(_ascending(sorted(seconds.items())))


def _timed(call: Callable[[int], object], rows: int) -> float:
    started = time.perf_counter()
    call(rows)
    return time.perf_counter() - started
