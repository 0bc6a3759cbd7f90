"""The sliding window by its definition, in exact arithmetic, to compare with."""

from fractions import Fraction

# In a second. A power of two, so that a float holds every instant exactly.
TICKS = 1024


class Reference:
    """Every event is kept: at which tick, and how many rows."""

    def __init__(self, limit: int, seconds: int) -> None:
        self._limit = limit
        self._length = seconds * TICKS
        self._events: list[tuple[int, int]] = []

    def ask(self, tick: int, rows: int) -> int | None:
        """The number of the event, or None where there is no room."""
        if self._used(tick) + rows > self._limit:
            return None
        self._events.append((tick, rows))
        return len(self._events) - 1

    def give_back(self, event: int) -> None:
        """As if it had not been."""
        self._events[event] = (self._events[event][0], 0)

    def remaining(self, tick: int) -> int:
        """Whole rows that are left."""
        return max(0, int(self._limit - self._used(tick)))

    def _used(self, tick: int) -> Fraction:
        window, past = divmod(tick, self._length)
        weight = Fraction(self._length - past, self._length)
        return weight * self._sum(window - 1) + self._sum(window)

    def _sum(self, window: int) -> int:
        return sum(rows for tick, rows in self._events if tick // self._length == window)
