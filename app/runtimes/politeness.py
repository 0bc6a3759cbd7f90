"""Politeness: long work beside callers rests now and again.

On a thread beside the event loop's it holds Python's lock, which the loop asks for with each connection that it reads
from or writes to; a thread that computes gives it away only after half a millisecond. Under load that is a thousand
times a second, and callers wait for tens of milliseconds (measured with two workers at half of their load: p99 30 ms,
and 12 with rests, where it is 8 otherwise).

In a process of its own, that may use idle CPUs only, it leaves no CPU idle, and then the scheduler is slow to bring
there what has become ready to run elsewhere (measured in the same way: p99 28 ms, and 13 to 16 with rests, where it is
13 otherwise). Where nobody else wants its CPU, such a process need not rest.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from app.machine import seconds_without_cpu

_WORK_SECONDS = 0.001
# Most versions are loaded within the first second; others should come to an end, too.
_LONG_REST, _SHORT_REST = 0.009, 0.003
_POLITEST_SECONDS = 1.0
# In a process of its own: rests that are so many times as long as the work, if that had to wait for its CPU.
_WORK_SECONDS_APART = 0.004
_LONG_RESTS_APART, _SHORT_RESTS_APART, _LONGEST_APART = 3, 1, 0.1
_POLITEST_SECONDS_APART = 10.0
_BUSY_SHARE = 0.05


class _Manners(threading.local):
    """Of one thread: until when it may work, for ever where nobody is beside it; times are in seconds."""

    due = math.inf
    began = 0.0
    woke = 0.0
    rested = 0.0
    apart = False
    waited = 0.0


_manners = _Manners()


@contextmanager
def politely(*, apart: bool = False) -> Iterator[None]:
    """In this block this thread rests where it comes to `breathe`; `apart`: it is in a process of its own."""
    _manners.began = time.perf_counter()
    _manners.apart = apart
    _wake(_manners.began)
    try:
        yield
    finally:
        _manners.due = math.inf


def is_polite() -> bool:
    """Whether there are callers beside what this thread does."""
    return _manners.due < math.inf


def breathe() -> None:
    """Rest for a moment, if this thread is polite and has worked long enough."""
    now = time.perf_counter()
    if now > _manners.due:
        time.sleep(_rest_apart(now) if _manners.apart else _rest(now))
        woke = time.perf_counter()
        _manners.rested += woke - now
        _wake(woke)


def working_clock() -> float:
    """A clock, in seconds, that stands still while this thread rests."""
    return time.perf_counter() - _manners.rested


def _rest(now: float) -> float:
    return _LONG_REST if now - _manners.began < _POLITEST_SECONDS else _SHORT_REST


def _rest_apart(now: float) -> float:
    worked, waited = now - _manners.woke, seconds_without_cpu() - _manners.waited
    if waited < _BUSY_SHARE * worked:
        return 0.0
    times = _LONG_RESTS_APART if now - _manners.began < _POLITEST_SECONDS_APART else _SHORT_RESTS_APART
    return min(times * worked, _LONGEST_APART)


def _wake(now: float) -> None:
    _manners.woke = now
    _manners.due = now + (_WORK_SECONDS_APART if _manners.apart else _WORK_SECONDS)
    if _manners.apart:
        _manners.waited = seconds_without_cpu()
