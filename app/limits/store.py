"""LocalStorage: the windows of this process, as a storage of the library `limits`.

The library's own storage in memory starts timer threads, asks the wall clock, and grows with the number of callers.
This one has a monotonic clock, a bound, and no threads; only the event loop's thread may use it. Where there are
`Columns`, what the other processes of this service have used counts as if it had been used here.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from limits.storage import Storage

from app.limits.columns import Columns
from app.limits.windows import Window

Clock = Callable[[], float]

_MOST_WINDOWS = 50_000
# What each process may use of a rate that nobody has used of late, before it has asked: together a sixth of it.
UNASKED = 6
_JUMP_SECONDS = 0.25


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
        columns: Columns | None = None,
    ) -> None:
        """`clock` counts seconds and never goes back; `most` is how many windows are kept."""
        super().__init__(uri, wrap_exceptions)
        self.windows: OrderedDict[str, Window] = OrderedDict()
        self.offset = 0.0  # from `clock` to the time that all processes have in common
        self.columns = columns
        self.processes = 0  # how many share; 0 while this one decides alone
        self.untold: list[Window] = []  # what the others have to be told
        self.tell_soon: Callable[[], None] = _nothing
        self._clock = clock
        self._most = most
        if columns and columns.offset:
            self.follow(columns.offset)

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
        row = window.row
        if row is None:
            admitted = window.take(amount, elapsed / expiry)
        else:
            if not self.processes:
                row.read(window)
            admitted = window.take(amount, elapsed / expiry)
            if admitted:
                row.write(window)
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
        number, elapsed = divmod(self._now(), expiry)
        window = self.windows.get(key) or self._open(key, 0, expiry, number)
        self._advance(window, number, elapsed)
        window.spent += amount
        if window.row:
            window.row.write(window)
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
        """Forget everything that this process has used; returns how many windows that was."""
        keys = list(self.windows)
        for key in keys:
            self.clear(key)
        self.untold.clear()
        return len(keys)

    def clear(self, key: str) -> None:
        """Forget what this process has used."""
        window = self.windows.pop(key, None)
        if window is not None and window.row:
            window.spent = window.own_before = 0
            window.row.turn(window, self._now())
            window.row = None

    # What our own modules ask for.

    def elapsed(self, window: Window) -> float:
        """Bring the window up to now; returns the part of it that is past."""
        number, elapsed = divmod(self._clock() + self.offset, window.seconds)
        return self._advance(window, number, elapsed) / window.seconds

    def give_back(self, window: Window, number: float, amount: int) -> None:
        """Undo what was taken from window `number`."""
        if self.columns and not window.row:  # it was let go here, and its column knows it still
            key, limit, seconds = window.key, window.limit, window.seconds
            window = self.windows.get(key) or self._open(key, limit, seconds, self._now() // seconds)
        self.elapsed(window)
        window.give_back(number, amount)
        if window.row:
            window.row.turn(window, self._now())
        if self.processes:
            self._tell(window)

    def heard_of(self, key: str, limit: int, seconds: int) -> Window:
        """The window of a key that another process uses."""
        window = self.windows.get(key)
        if window is None:
            number = self._now() // seconds
            window = self._open(key, limit, seconds, number)
            window.ceiling = 0.0
        return window

    def unasked(self, limit: int) -> float:
        """How much of a rate this process may use before it has asked the others."""
        if not self.processes:
            return math.inf
        return float(limit if self.processes == 1 else limit // (UNASKED * self.processes))

    def complete(self, window: Window) -> None:
        """Add to what was heard through Redis what the columns know already, and note what only Redis knows."""
        if window.row:
            others, before = window.row.others()
            before += window.own_before
            window.distant, window.distant_before = max(0, window.others - others), max(0, window.previous - before)
            window.others, window.previous = max(window.others, others), max(window.previous, before)

    def follow(self, offset: float) -> None:
        """Measure time by this offset; where that is another time altogether, what was counted is carried over."""
        if abs(offset - self.offset) > _JUMP_SECONDS:
            for window in self.windows.values():
                self.elapsed(window)
            self.offset = offset
            for window in self.windows.values():
                self._renumber(window)
        self.offset = offset
        if self.columns:
            self.columns.offset = offset

    def mark(self, window: Window) -> None:
        """Note that the others have to be told."""
        if not window.dirty:
            window.dirty = True
            self.untold.append(window)

    def mark_all(self) -> None:
        """Note that the others know of nothing."""
        for window in self.windows.values():
            self.mark(window)

    def used_elsewhere(self, key: str, limit: int, seconds: int) -> None:
        """Have the key's window, if another process of this service has used it."""
        if self.columns and key not in self.windows and self.columns.knows(key):
            self._open(key, limit, seconds, self._now() // seconds)

    def refresh(self, window: Window) -> float:
        """Bring the window, and what the columns say of it, up to now; returns the part of it that is past."""
        elapsed = self.elapsed(window)
        if window.row and not self.processes:
            window.row.read(window)
        return elapsed

    def decide_alone(self) -> None:
        """Give every window all of its rate; what is known of the others still counts, as long as it would have.

        With columns, all processes of this service measure time as the first of them does, and have the rate together.
        """
        if self.columns:
            self.follow(self.columns.offset)
        self.processes = 0
        for window in self.untold:
            window.dirty = False
        self.untold.clear()
        for window in self.windows.values():
            window.ceiling = window.wake_at = math.inf
            window.overdrawn = False

    def _open(self, key: str, limit: int, seconds: int, number: float) -> Window:
        window = self.windows[key] = Window(key, limit, seconds, number, self.unasked(limit))
        if self.columns:
            self.columns.open(window, self._now())
            if self.processes and window.spent:  # for who has begun, the others keep nothing free unasked
                window.ceiling = min(window.ceiling, window.spent)
        if len(self.windows) > self._most:
            _, forgotten = self.windows.popitem(last=False)
            forgotten.row = None  # it must not write any more, since its key may get another window
        return window

    def _renumber(self, window: Window) -> None:
        now = self._now()
        window.number = now // window.seconds
        if window.row:
            window.row.turn(window, now)

    def _now(self) -> float:
        return self._clock() + self.offset

    def _advance(self, window: Window, number: float, elapsed: float) -> float:
        """Seconds of the window that are past, once it is the current one."""
        if number < window.number:  # a correction of the common time has put us just before its beginning
            return 0.0
        if number > window.number:
            window.advance(number, elapsed / window.seconds, self.unasked(window.limit))
            if window.row:
                window.row.turn(window, number * window.seconds + elapsed)
        return elapsed

    def _tell(self, window: Window) -> None:
        self.mark(window)
        if window.spent > window.wake_at:
            window.wake_at = math.inf
            self.tell_soon()
