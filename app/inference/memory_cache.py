"""MemoryCache: the entries that this process keeps, those used last, each up to its age."""

import time
from collections import OrderedDict
from collections.abc import Callable

from app.inference.entries import Entry

Clock = Callable[[], float]

# However small they are: a dict of a million stands still for some 50 ms when it grows, and slows collections down.
MOST_ENTRIES = 1_000_000


class MemoryCache:
    """Only for the event loop's thread, hence without a lock. `bytes` is what the entries take, about."""

    def __init__(self, most_bytes: int, most_entries: int = MOST_ENTRIES, clock: Clock = time.monotonic) -> None:
        """`clock` counts seconds and never goes back."""
        self.bytes = 0
        self._most_bytes = most_bytes
        self._most_entries = most_entries
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[float, int, Entry]] = (
            OrderedDict()
        )  # by last use: until when, bytes, entry

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Entry | None:
        """The entry, unless it is too old or there is none."""
        found = self._kept.get(key)
        if found is None:
            return None
        if found[0] <= self._clock():
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found[2]

    def put(self, key: bytes, entry: Entry, size: int, seconds: float) -> None:
        """Keep it for so long at most; those that were not used for longest make room. `size` is in bytes."""
        if key in self._kept:
            self._drop(key)
        if size > self._most_bytes:
            return
        self._kept[key] = (self._clock() + seconds, size, entry)
        self.bytes += size
        while self.bytes > self._most_bytes or len(self._kept) > self._most_entries:
            self.bytes -= self._kept.popitem(last=False)[1][1]

    def _drop(self, key: bytes) -> None:
        self.bytes -= self._kept.pop(key)[1]
