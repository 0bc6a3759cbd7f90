"""Politeness: long work on a thread beside the event loop's lets go of Python's lock, for longer than it has had it.

An event loop asks for that lock with each connection that it reads from or writes to, and a thread which computes gives
it away after half a millisecond. Under load that is a thousand times a second, and callers wait for tens of
milliseconds (measured with two workers at half of their load: p99 30 ms, and 12 with rests, where it is 8 otherwise). A
thread that rests now and again leaves the loop alone meanwhile.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_WORK_SECONDS = 0.001
# Most versions are loaded within the first second; others should come to an end, too.
_LONG_REST, _SHORT_REST = 0.009, 0.003
_POLITEST_SECONDS = 1.0


class _Manners(threading.local):
    """Of one thread: until when it may work; for ever, where nobody is beside it."""

    due = math.inf
    began = 0.0


_manners = _Manners()


@contextmanager
def politely() -> Iterator[None]:
    """In this block this thread rests where it comes to `breathe`."""
    _manners.began = time.perf_counter()
    _manners.due = _manners.began + _WORK_SECONDS
    try:
        yield
    finally:
        _manners.due = math.inf


def breathe() -> None:
    """Rest for a moment, if this thread is polite and has worked long enough."""
    now = time.perf_counter()
    if now > _manners.due:
        time.sleep(_LONG_REST if now - _manners.began < _POLITEST_SECONDS else _SHORT_REST)
        _manners.due = time.perf_counter() + _WORK_SECONDS
