"""Window: what has been used of one rate, as a sliding window over two counters.

What was used before the current window counts by the part of it that the last `seconds` still cover. So a window is a
few numbers, however much passes through it.

Where processes share a rate, each may only use what it has claimed (`ceiling`), and one request more where there is
room. A process that is alone has claimed everything: its ceiling is infinite.
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.limits.columns import Row

# Less than any part of a row that a clock can make, and more than what floating point loses.
_NOTHING = 1e-6


class Window:
    """Counts of one key, in rows. `elapsed` is always the part of the current window that is past: 0 to 1."""

    __slots__ = (
        "active",
        "ceiling",
        "dirty",
        "distant",
        "distant_before",
        "key",
        "limit",
        "number",
        "others",
        "others_claims",
        "overdrawn",
        "own_before",
        "previous",
        "row",
        "seconds",
        "spent",
        "told",
        "wake_at",
    )

    def __init__(self, key: str, limit: int, seconds: int, number: float, ceiling: float) -> None:
        self.key = key
        self.limit = limit
        self.seconds = seconds
        self.number = number  # windows since the clock's zero
        self.spent = 0  # by this process, in this window
        self.others = 0  # spent by the other processes, as last heard
        self.others_claims = 0  # and with what they may spend without asking
        self.previous = 0  # spent by all of them in the window before
        self.own_before = 0  # of which by this process
        self.ceiling = ceiling  # what `spent` may come to
        self.overdrawn = False  # whether the one request beyond the ceiling has been made
        self.wake_at = 0.0  # at which `spent` the others should be told soon
        self.active = False  # whether it was asked for since the others were told
        self.dirty = False  # whether it waits to be told
        self.told = 0  # what `spent` was when the others were told
        self.row: Row | None = None  # its place in the columns, where there are any
        self.distant = 0  # of `others`: by processes that have no column, as last heard
        self.distant_before = 0  # the same of `previous`

    def advance(self, number: float, elapsed: float, fresh: float) -> None:
        """Go on to a later window; `fresh` is the ceiling of one that nobody has used of late."""
        if number == self.number + 1:
            self.previous, self.own_before, self.distant_before = self.spent + self.others, self.spent, self.distant
            # To the others, what was claimed counts no more than this now.
            self.ceiling = max(0.0, self.ceiling - self.spent) * (1 - elapsed)
        else:
            self.previous = self.own_before = self.distant_before = 0
            self.ceiling = fresh
        self.number = number
        self.wake_at = self.ceiling / 2
        self.spent = self.others = self.others_claims = self.told = self.distant = 0
        self.overdrawn = False

    def take(self, amount: int, elapsed: float) -> bool:
        """Use `amount` if there is room for all of it; a refusal uses nothing."""
        self.active = True
        spent = self.spent + amount
        before = self.previous * (1 - elapsed)
        room = self.limit + _NOTHING - before - spent
        if room < self.others:
            return False
        if spent > self.ceiling:
            # A batch cannot be let in bit by bit; one row can wait until the others have given back what they hold.
            if self.overdrawn or (amount == 1 and room < self.others_claims):
                return False
            self.overdrawn = True
        self.spent = spent
        return True

    def give_back(self, number: float, amount: int) -> None:
        """Undo a `take` of window `number`, unless it is so old that it no longer counts."""
        if number == self.number:
            self.spent -= amount
        elif number == self.number - 1:
            self.previous -= amount
            self.own_before -= amount

    def shared(self, ceiling: float, others: int, others_claims: int, previous: int, elapsed: float) -> None:
        """Take over what an exchange brought."""
        self.ceiling, self.others, self.others_claims, self.previous = ceiling, others, others_claims, previous
        # The one request beyond the ceiling is the last until it has been told, and there was room for it.
        used = previous * (1 - elapsed) + self.spent + others_claims
        self.overdrawn = self.spent > ceiling or used > self.limit + _NOTHING

    def used(self, elapsed: float) -> float:
        """Rows that count now."""
        return self.previous * (1 - elapsed) + self.spent + self.others

    def remaining(self, elapsed: float) -> int:
        """Whole rows that are left."""
        return max(0, math.floor(self.limit - self.used(elapsed) + _NOTHING))

    def wait(self, amount: int, elapsed: float) -> float:
        """Seconds until `amount` fits, if nothing more is used; `amount` is at most the limit."""
        target = self.limit - amount
        now = self.spent + self.others
        if self.used(elapsed) <= target + _NOTHING:
            return 0.0
        if now <= target:  # the window before has to pass out of sight
            return (1 - (target - now) / self.previous - elapsed) * self.seconds
        return (1 - elapsed + 1 - target / now) * self.seconds

    def until_whole(self, elapsed: float) -> float:
        """Seconds until all of it is there again, if nothing more is used."""
        if self.spent + self.others:
            return (2 - elapsed) * self.seconds
        return (1 - elapsed) * self.seconds if self.previous else 0.0
