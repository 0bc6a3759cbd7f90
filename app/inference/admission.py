"""Admission: whether an answer can come in time, by predicted seconds of work.

A queue is not long by its number of calls: a hundred linear models are a millisecond, and a hundred forests half a
second. What cannot be answered in time is refused at once, while its caller can still do something about it.
"""

import math

from app.errors import DeadlineExceeded, Overloaded, OverShare
from app.inference.turns import Terms, Turns
from app.runtimes.cost import Cost

# However cheap they are: rows that wait are memory.
MOST_ROWS = 100_000
# Of the time that is left, the part that predicted work may fill: the loop and the answer need some, too.
_TRUST = 0.8
_NEWEST_WEIGHS = 0.1
_LEAST_FACTOR, _MOST_FACTOR = 0.1, 1000.0
_NOTICED = 0.1


class Pace:
    """A version's cost, measured when it was loaded, and corrected by how long its calls take now."""

    def __init__(self, cost: Cost, slice_seconds: float) -> None:
        """`slice_seconds`: how long one piece of work should take."""
        self._cost = cost
        self._slice_seconds = slice_seconds
        self._factor = 1.0
        self._settled = 0.0
        self.slice_work = 1.0  # usual rows of a piece of work
        self.row_seconds = 0.0  # of a row among many
        self._settle()

    def seconds(self, work: float) -> float:
        """How long so many usual rows take together."""
        return self._cost.seconds(max(1, math.ceil(work))) * self._factor

    def least_seconds(self, work: float) -> float:
        """The same when nothing slows it down."""
        return self._cost.seconds(max(1, math.ceil(work))) * min(self._factor, 1.0)

    def took(self, work: float, seconds: float) -> None:
        """Learn from a piece of work."""
        ratio = seconds / max(self._cost.seconds(max(1, math.ceil(work))), 1e-7)
        self._factor += _NEWEST_WEIGHS * (min(max(ratio, _LEAST_FACTOR), _MOST_FACTOR) - self._factor)
        if abs(self._factor - self._settled) > _NOTICED * self._settled:
            self._settle()

    def _settle(self) -> None:
        self._settled = self._factor
        self.slice_work = float(self._cost.rows_within(self._slice_seconds / self._factor))
        self.row_seconds = self.seconds(self.slice_work) / self.slice_work


def check_admission(terms: Terms, work: float, queue: Turns, pace: Pace, busy: float, now: float) -> None:
    """Raises what refuses a call of so much work.

    `queue` is what the call would wait in, and `busy` how many seconds pass before the first of it has its turn.
    DeadlineExceeded: the model alone needs longer than there is time. Overloaded: too much waits. OverShare: too much
    waits, and more than the caller's equal share is their own.
    """
    allowed = (terms.deadline - now) * _TRUST
    if pace.least_seconds(work) > allowed:
        raise DeadlineExceeded("the model takes longer than the time that this request leaves it")
    if not queue and not busy:
        return  # whatever the last calls took: without this one, nobody would learn that it is over
    wait = busy + queue.ahead(terms.subject, work) * pace.row_seconds
    if wait <= allowed and queue.rows < MOST_ROWS:
        return
    retry_after = max(1, math.ceil(wait - allowed)) if wait > allowed else 1
    if queue.is_over_share(terms.subject):
        raise OverShare("too much waits for this model, and more than a fair part is yours", retry_after=retry_after)
    raise Overloaded("more waits for this model than could be answered in time", retry_after=retry_after)
