"""LocalStorage: the windows of this process, as a storage of the library `limits`.

The library's own storage in memory starts timer threads, asks the wall clock, and grows with the number of callers.
This one has a monotonic clock, a bound, and no threads; only the event loop's thread may use it.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from limits.storage import Storage

from app.limits.windows import Window

Clock = Callable[[], float]

_MOST_WINDOWS = 50_000
# What each process may use of a rate that nobody has used of late, before it has asked: together a sixth of it.
UNASKED = 6


def _nothing() -> None:
    """What is called to tell the others while there are none."""


class LocalStorage(Storage):
    """Windows by key, the least recently used one out. Windows begin at multiples of their length."""

    STORAGE_SCHEME = ["local"]  # noqa: RUF012 -- as the base class declares it
    base_exceptions = ()

    def __init__(
        self,
        uri: str | None = None,
        wrap_exceptions: bool = False,  # noqa: FBT001, FBT002 -- the base class's
        *,
        clock: Clock = time.monotonic,
        most: int = _MOST_WINDOWS,
    ) -> None:
        """`clock` counts seconds and never goes back; `most` is how many windows are kept."""
        super().__init__(uri, wrap_exceptions)
        self.windows: OrderedDict[str, Window] = OrderedDict()
        self.offset = 0.0  # from `clock` to the time that all processes have in common
        self.processes = 0  # how many share; 0 while this one decides alone
        self.untold: list[Window] = []  # what the others have to be told
        self.tell_soon: Callable[[], None] = _nothing
        self._clock = clock
        self._most = most

    # What the strategy "sliding-window-counter" asks for.

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Take `amount` from the key's window if there is room for all of it."""
        number, elapsed = divmod(self._clock() + self.offset, expiry)
        window = self.windows.get(key)
        if window is None:
            window = self._open(key, limit, expiry, number)
        elif number != window.number:
            elapsed = self._advance(window, number, elapsed)
        self.windows.move_to_end(key)
        admitted = window.take(amount, elapsed / expiry)
        if self.processes:
            self._tell(window)
        return admitted

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Count and seconds left of the window before, then of the current one."""
        window = self.windows.get(key)
        if window is None:
            return 0, 0.0, 0, 0.0
        left = (1 - self.elapsed(window)) * expiry
        return window.previous, left, window.spent + window.others, left + expiry

    def clear_sliding_window(self, key: str, expiry: int) -> None:  # noqa: ARG002 -- the library's signature
        """Forget what was used."""
        self.clear(key)

    # What the base class asks for.

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count without a limit; returns the count of the current window."""
        number, elapsed = divmod(self._clock() + self.offset, expiry)
        window = self.windows.get(key) or self._open(key, 0, expiry, number)
        self._advance(window, number, elapsed)
        window.spent += amount
        return window.spent

    def get(self, key: str) -> int:
        """Count of the current window."""
        window = self.windows.get(key)
        if window is None:
            return 0
        self.elapsed(window)
        return window.spent + window.others

    def get_expiry(self, key: str) -> float:
        """When the current window ends, by this storage's clock."""
        window = self.windows.get(key)
        if window is None:
            return self._clock()
        return self._clock() + (1 - self.elapsed(window)) * window.seconds

    def check(self) -> bool:
        """Whether it works: memory does."""
        return True

    def reset(self) -> int | None:
        """Forget everything; returns how many windows that was."""
        count = len(self.windows)
        self.windows.clear()
        self.untold.clear()
        return count

    def clear(self, key: str) -> None:
        """Forget what was used."""
        self.windows.pop(key, None)

    # What our own modules ask for.

    def elapsed(self, window: Window) -> float:
        """Bring the window up to now; returns the part of it that is past."""
        number, elapsed = divmod(self._clock() + self.offset, window.seconds)
        return self._advance(window, number, elapsed) / window.seconds

    def give_back(self, window: Window, number: float, amount: int) -> None:
        """Undo what was taken from window `number`."""
        self.elapsed(window)
        window.give_back(number, amount)
        if self.processes:
            self._tell(window)

    def heard_of(self, key: str, limit: int, seconds: int) -> Window:
        """The window of a key that another process uses."""
        window = self.windows.get(key)
        if window is None:
            number = (self._clock() + self.offset) // seconds
            window = self._open(key, limit, seconds, number)
            window.ceiling = 0.0
        return window

    def unasked(self, limit: int) -> float:
        """How much of a rate this process may use before it has asked the others."""
        if not self.processes:
            return math.inf
        return float(limit if self.processes == 1 else limit // (UNASKED * self.processes))

    def move_clock(self, offset: float) -> None:
        """Measure time anew; what has been counted is carried over."""
        for window in self.windows.values():
            self.elapsed(window)
        self.offset = offset
        now = self._clock() + offset
        for window in self.windows.values():
            window.number = now // window.seconds

    def mark(self, window: Window) -> None:
        """Note that the others have to be told."""
        if not window.dirty:
            window.dirty = True
            self.untold.append(window)

    def mark_all(self) -> None:
        """Note that the others know of nothing."""
        for window in self.windows.values():
            self.mark(window)

    def decide_alone(self) -> None:
        """Give every window all of its rate; what is known of the others still counts, as long as it would have."""
        self.processes = 0
        for window in self.untold:
            window.dirty = False
        self.untold.clear()
        for window in self.windows.values():
            window.ceiling = window.wake_at = math.inf
            window.overdrawn = False

    def _open(self, key: str, limit: int, seconds: int, number: float) -> Window:
        window = self.windows[key] = Window(key, limit, seconds, number, self.unasked(limit))
        if len(self.windows) > self._most:
            self.windows.popitem(last=False)
        return window

    def _advance(self, window: Window, number: float, elapsed: float) -> float:
        """Seconds of the window that are past, once it is the current one."""
        if number < window.number:  # a correction of the common time has put us just before its beginning
            return 0.0
        if number > window.number:
            window.advance(number, elapsed / window.seconds, self.unasked(window.limit))
        return elapsed

    def _tell(self, window: Window) -> None:
        self.mark(window)
        if window.spent > window.wake_at:
            window.wake_at = math.inf
            self.tell_soon()
