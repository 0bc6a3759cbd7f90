"""A polite thread leaves most of the time to others; one that is not asked to be polite does not rest."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from app.runtimes.politeness import breathe, politely, working_clock


def _share_of_the_time(seconds: float) -> float:
    """Of the time by the clock, the part in which so many seconds of work were done."""
    started, began = time.perf_counter(), time.thread_time()
    while time.thread_time() - began < seconds:
        breathe()
    return seconds / (time.perf_counter() - started)


@pytest.mark.parametrize(("polite", "seconds"), [(True, 0.02), (False, 0.02)])
def test_work_that_is_polite_rests(*, polite: bool, seconds: float) -> None:
    """Nine tenths of the time at first, and other work not at all, as far as the machine lets it."""
    with politely() if polite else nullcontext():
        share = max(_share_of_the_time(seconds) for _ in range(3))
    assert (share < 0.25) == polite


def test_good_manners_end_with_the_block() -> None:
    """Also where it is left by an error."""
    with pytest.raises(ValueError, match="wrong"), politely():
        raise ValueError("wrong")
    assert max(_share_of_the_time(0.02) for _ in range(3)) > 0.25


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """This thread may use one CPU only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)


def _rested(seconds: float) -> float:
    """The part of the time in which the working clock stood still while so many seconds of work were done."""
    started, working, began = time.perf_counter(), working_clock(), time.thread_time()
    while time.thread_time() - began < seconds:
        breathe()
    took = time.perf_counter() - started
    return 1 - (working_clock() - working) / took


@pytest.mark.usefixtures("one_cpu")
def test_in_a_process_of_its_own_it_rests_where_somebody_wants_the_cpu() -> None:
    """Three quarters of the time; and as soon as the other one is gone, not at all."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # on the same CPU
    try:
        with politely(apart=True):
            assert any(_rested(0.02) > 0.6 for _ in range(20))
    finally:
        other.kill()
        other.wait()
    with politely(apart=True):
        assert any(_rested(0.02) < 0.3 for _ in range(20))


@pytest.mark.usefixtures("one_cpu")
def test_beside_the_loop_it_rests_whether_or_not_there_is_a_cpu() -> None:
    """What others wait for is Python's lock."""
    with politely():
        assert any(_rested(0.02) > 0.6 for _ in range(3))
