"""Columns: what each process of one service has used, in memory that all of them see.

Each process has a column, a table from the digest of a window's key to what it has used in the current window and in
the one before. It alone writes there, and reads everybody's before it decides. There are no locks, since a process that
is frozen or killed while it holds one would stop all others: whatever is written is one aligned word of 8 bytes, which
is there as a whole or not at all, and holds a count together with the number of its window.

Between reading and writing others decide, too. So what is let in beyond the limit is one request for each other process
at most: whatever it had read before, by its next decision it has seen the rest.

A column outlives its process. Whoever gets it next goes on with its counts, so a crash gives nobody a plan anew.
"""

import secrets
from collections.abc import Sequence
from hashlib import blake2b

import structlog

from app.limits.windows import Window

log = structlog.get_logger(__name__)

# A column's head, in words: how many entries it has ever been given, how many are not empty, what the process is called
# in Redis, the offset of its clock; and in the first column, the bell. The rest is a place for what finds none.
_GIVEN, _FILLED, _NAME, _OFFSET, _BELL = range(5)
_NOWHERE = 8
_HEAD = 12
# An entry, in words: digest, what was used in the current window, and in the one before; seconds of the window.
_ENTRY = 4
_EMPTY, _FREED = 0, 1
# A count is below 10^12, as rates are; above it is the number of its window, as far as there are bits. Windows of a
# second have the same number again after half a year.
_COUNT_BITS = 40
_COUNTS = (1 << _COUNT_BITS) - 1
_NUMBERS = (1 << 24) - 1
_SLOT_BITS = 48

# More than twice the windows that a process keeps, so that there is room for those that it no longer keeps and that
# still count, and so that a digest is found where it is looked for first.
REGION_BYTES = 8 * (_HEAD + _ENTRY * (1 << 17))
_FULL = 3 / 4
# Entries looked at for each one that is given: the table is gone through before an eighth of it is given anew.
_SWEPT = 8


class Columns:
    """The columns of all processes that may run at a time; `mine` is this one's, and no other process's."""

    def __init__(self, regions: Sequence[memoryview], mine: int) -> None:
        """`regions` are of one size, at first full of zeros, and on boundaries of 8 bytes."""
        words = [region.cast("Q") for region in regions]
        self._own = words[mine]
        self._clocks = [region.cast("d") for region in regions]
        self._slot = mine
        self._capacity = 1 << ((len(self._own) - _HEAD) // _ENTRY).bit_length() - 1
        self._end = _HEAD + _ENTRY * self._capacity
        self._most = int(_FULL * self._capacity)
        self._hand = _HEAD
        self._said = False  # that the column is full
        self.others = words[:mine] + words[mine + 1 :]
        self.bell = words[0]
        if not self._own[_NAME]:
            self._own[_NAME] = 1 + secrets.randbelow(_COUNTS)
        self._ring()  # whoever had the column may have died between an entry and its bell

    @property
    def name(self) -> str:
        """The column's, by which whoever writes it is known in Redis."""
        return f"{self._own[_NAME]:x}"

    @property
    def offset(self) -> float:
        """From the clock to the time of windows, as the first process knows it that does; 0 if nobody does."""
        return next((clock[_OFFSET] for clock in self._clocks if clock[_OFFSET]), 0.0)

    @offset.setter
    def offset(self, offset: float) -> None:
        self._clocks[self._slot][_OFFSET] = offset

    def open(self, window: Window, now: float) -> None:
        """Give the window a row, and what its column says that it has used."""
        digest = digest_of(window.key)
        place = self.find(self._own, digest)
        if place:
            number = int(window.number)
            window.spent, window.own_before = _used(self._own, place, _stamp(number), _stamp(number - 1))
        row = window.row = Row(self, self._own, digest)
        row.turn(window, now)
        row.read(window)

    def knows(self, key: str) -> bool:
        """Whether any process has used it lately."""
        digest = digest_of(key)
        return any(self.find(column, digest) for column in (self._own, *self.others))

    def find(self, column: memoryview, digest: int) -> int:
        """Where in a column the entry is; 0 where there is none."""
        place = self.home(digest)
        while (found := column[place]) != digest:
            if found == _EMPTY:
                return 0
            place = self._after(place)
        return place

    def give(self, digest: int, seconds: int, now: float) -> int:
        """Find the entry in this process's column, or make it; where there is no room, a place that nobody reads."""
        self._sweep(now)
        place, freed = self.home(digest), 0
        while (found := self._own[place]) != digest:
            if found == _FREED and not freed:
                freed = place
            if found == _EMPTY:
                return self._make(freed or place, digest, seconds)
            place = self._after(place)
        return place

    def _make(self, place: int, digest: int, seconds: int) -> int:
        own = self._own
        if own[place] == _EMPTY:
            if own[_FILLED] >= self._most:
                self._say_full()
                return _NOWHERE
            own[_FILLED] += 1
        own[place + 1], own[place + 2], own[place + 3] = 0, 0, seconds
        own[place] = digest  # last: from now on it is found
        self._ring()
        return place

    def _ring(self) -> None:
        """Have everybody look for new entries. All may write this word, since no value of it ever comes twice."""
        self._own[_GIVEN] += 1
        self.bell[_BELL] = self._slot << _SLOT_BITS | self._own[_GIVEN]

    def _sweep(self, now: float) -> None:
        """Free some entries that no longer count: from the last to the first, since what ends a run is empty then."""
        own = self._own
        for _ in range(_SWEPT):
            after = self._hand
            self._hand = place = (after if after > _HEAD else self._end) - _ENTRY
            if own[place] > _FREED and _is_past(own, place, now):
                own[place] = _FREED
            if own[place] == _FREED and own[after] == _EMPTY:
                own[place] = _EMPTY
                own[_FILLED] -= 1

    def home(self, digest: int) -> int:
        """Where in a column an entry is looked for first."""
        return _HEAD + _ENTRY * (digest % self._capacity)

    def _after(self, place: int) -> int:
        place += _ENTRY
        return place if place < self._end else _HEAD

    def _say_full(self) -> None:
        if not self._said:
            self._said = True
            log.warning("limits_column_full", windows=self._most)


class Row:
    """One window's place in all columns, for the process that has the window."""

    __slots__ = ("_columns", "_digest", "_found", "_heard", "_home", "_own", "_place", "_stamp", "_stamp_before")

    def __init__(self, columns: Columns, own: memoryview, digest: int) -> None:
        self._columns = columns
        self._own = own
        self._digest = digest
        self._home = columns.home(digest)
        self._place = _NOWHERE
        self._stamp = self._stamp_before = 0
        self._found: list[tuple[memoryview, int]] = []  # the other columns that have it, and where
        self._heard = 0  # the bell, as it was before they were looked for

    def turn(self, window: Window, now: float) -> None:
        """Write what the process has used after the window has got another number."""
        own, number = self._own, int(window.number)
        if own[self._place] != self._digest:
            self._place = self._columns.give(self._digest, window.seconds, now)
        self._stamp, self._stamp_before = _stamp(number), _stamp(number - 1)
        # In this order nobody misses what was used before: it is in the first word until it is in the second.
        own[self._place + 2] = self._stamp_before | window.own_before
        own[self._place + 1] = self._stamp | window.spent

    def write(self, window: Window) -> None:
        """Write what the process has used in the current window."""
        self._own[self._place + 1] = self._stamp | window.spent

    def read(self, window: Window) -> None:
        """Bring into the window what the others have used."""
        others, before = self.others()
        window.others = others + window.distant
        window.previous = window.own_before + before + window.distant_before

    def others(self) -> tuple[int, int]:
        """What the other columns say was used in the current window, and in the one before."""
        if self._columns.bell[_BELL] != self._heard:
            self._look()
        stamp, stamp_before = self._stamp, self._stamp_before
        spent = before = 0
        for column, place in self._found:
            # As `_used` does, which would cost as much again for the call. What was freed counts nothing, and before it
            # counts for another key the bell has rung.
            count = column[place + 1] ^ stamp
            if count <= _COUNTS:
                spent += count
                count = column[place + 2] ^ stamp_before
                if count <= _COUNTS:
                    before += count
            else:
                more, more_before = _used(column, place, stamp, stamp_before)
                spent, before = spent + more, before + more_before
        return spent, before

    def _look(self) -> None:
        columns, digest, home = self._columns, self._digest, self._home
        self._heard = columns.bell[_BELL]
        self._found = []
        for column in columns.others:
            if column[_FILLED]:  # else to look would only make the kernel fetch a page for it
                at_home = column[home]
                if at_home == digest:
                    self._found.append((column, home))
                elif at_home != _EMPTY and (place := columns.find(column, digest)):
                    self._found.append((column, place))


def digest_of(key: str) -> int:
    """64 bits, of which two windows in 50,000 have the same once in ten thousand million times."""
    return max(_FREED + 1, int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little"))


def _stamp(number: int) -> int:
    """A window's number, where it stands in a word."""
    return (number & _NUMBERS) << _COUNT_BITS


def _used(column: memoryview, place: int, stamp: int, stamp_before: int) -> tuple[int, int]:
    """What an entry says was used in one window and in the one before, whichever window its process has come to."""
    current, before = column[place + 1], column[place + 2]
    if current ^ stamp <= _COUNTS:
        return current ^ stamp, before ^ stamp_before if before ^ stamp_before <= _COUNTS else 0
    if current ^ stamp_before <= _COUNTS:
        return 0, current ^ stamp_before
    return before ^ stamp if before ^ stamp <= _COUNTS else 0, 0


def _is_past(column: memoryview, place: int, now: float) -> bool:
    """Whether nothing of an entry counts any more; its window may also be the next one, by a clock that was set."""
    age = (int(now // column[place + 3]) - (column[place + 1] >> _COUNT_BITS)) & _NUMBERS
    return 1 < age < _NUMBERS
