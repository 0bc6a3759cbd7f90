"""A polite thread leaves most of the time to others; one that is not asked to be polite does not rest."""

import time
from contextlib import nullcontext

import pytest

from app.runtimes.politeness import breathe, politely


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
