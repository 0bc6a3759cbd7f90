"""Admission is by predicted seconds: what cannot be in time is refused at once, and callers take turns."""

import asyncio
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import DeadlineExceeded, Overloaded, OverShare
from app.inference.admission import Pace, check_admission
from app.inference.turns import Call, Part, Terms, Turns
from app.runtimes.cost import Cost, measure_cost
from tests.inference.conftest import ORIGIN

# A tenth of a second for each row, however many.
COST = Cost(((1, 0.1), (1000, 100.0)))


def _on_a_loop(work: Callable[[], None]) -> None:
    async def run() -> None:
        work()

    asyncio.run(run())


def _call(subject: str, rows: int = 1, deadline: float = math.inf) -> Call:
    future = asyncio.get_running_loop().create_future()
    terms = Terms(ORIGIN, subject, deadline=deadline)
    return Call([subject] * rows, [{"x": n} for n in range(rows)], [1.0] * rows, terms, future)


def _filled(**waiting: int) -> Turns:
    """Calls of one row each, by caller."""
    queue = Turns()
    for subject, count in waiting.items():
        for _ in range(count):
            queue.push(_call(subject), 1.0)
    return queue


def _check(queue: Turns, subject: str, seconds: float, *, busy: float = 0.0, work: float = 1.0) -> None:
    check_admission(Terms(ORIGIN, subject, deadline=seconds), work, queue, Pace(COST, 0.1), busy, now=0.0)


def test_what_fits_before_the_deadline_is_let_in_and_no_more() -> None:
    """Ten rows of a tenth of a second each fit into two seconds; thirty do not."""

    def work() -> None:
        _check(_filled(a=10), "a", 2.0, busy=0.05)
        with pytest.raises(Overloaded) as caught:
            _check(_filled(a=30), "a", 2.0, busy=0.05)
        assert not isinstance(caught.value, OverShare)
        assert caught.value.retry_after == math.ceil(0.05 + 3.1 - 1.6)

    _on_a_loop(work)


def test_who_has_more_than_a_fair_part_is_told_so() -> None:
    """One caller's flood is 429 for that caller, and no reason to refuse another."""

    def work() -> None:
        queue = _filled(flood=100, other=1)
        with pytest.raises(OverShare):
            _check(queue, "flood", 2.0)
        _check(queue, "other", 2.0)
        _check(queue, "third", 2.0)

    _on_a_loop(work)


def test_a_model_that_takes_longer_than_there_is_time_is_not_asked() -> None:
    """Not even when nothing waits: waiting would not help."""
    _on_a_loop(lambda: _check(Turns(), "a", 0.2))
    with pytest.raises(DeadlineExceeded):
        _on_a_loop(lambda: _check(Turns(), "a", 0.09))


def test_time_that_is_over_is_no_time() -> None:
    """A deadline that has passed before the model is asked is refused."""
    with pytest.raises(DeadlineExceeded):
        _on_a_loop(lambda: _check(Turns(), "a", -1.0))


def test_callers_take_turns() -> None:
    """Whoever has one call is served after one of each other caller's, not after all of a flood."""

    def work() -> None:
        queue = _filled(flood=50, other=2)
        parts: list[Part] = []
        queue.take(4.0, 0.0, parts)
        assert [part.call.terms.subject for part in parts] == ["flood", "other", "flood", "other"]

    _on_a_loop(work)


@given(
    sizes=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30)), min_size=1, max_size=12),
    room=st.floats(1.0, 12.0),
)
def test_all_rows_are_taken_once_and_in_order(sizes: list[tuple[str, int]], room: float) -> None:
    """However calls are cut into slices, and each slice has no more than fits."""

    def work() -> None:
        queue = Turns()
        calls = [_call(subject, rows) for subject, rows in sizes]
        for call in calls:
            queue.push(call, float(len(call.rows)))
        taken: dict[int, list[int]] = {id(call): [] for call in calls}
        while queue:
            parts: list[Part] = []
            assert queue.take(room, 0.0, parts) <= max(1.0, room)
            for part in parts:
                taken[id(part.call)] += range(part.start, part.stop)
        assert [taken[id(call)] for call in calls] == [list(range(rows)) for _, rows in sizes]
        assert (queue.rows, queue.work) == (0, 0.0)

    _on_a_loop(work)


def test_a_pace_learns_how_long_calls_take_now() -> None:
    """Twice as slow as measured for a while is twice the predicted time; and it heals."""
    pace = Pace(COST, 1.0)
    assert pace.slice_work == pytest.approx(10, abs=1)
    for _ in range(100):
        pace.took(1.0, 0.2)
    assert pace.seconds(5) == pytest.approx(1.0, rel=0.1)
    assert pace.slice_work == pytest.approx(5, abs=1)
    for _ in range(100):
        pace.took(1.0, 0.1)
    assert pace.seconds(5) == pytest.approx(0.5, rel=0.1)


@given(points=st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=5), seconds=st.floats(1e-6, 3.0))
def test_as_many_rows_as_fit_fit(points: list[float], seconds: float) -> None:
    """`rows_within` is the inverse of `seconds`, but for the one row that there always is."""
    cost = Cost(tuple((4**place, sum(points[: place + 1])) for place in range(len(points))))
    rows = cost.rows_within(seconds)
    assert rows == 1 or cost.seconds(rows) <= seconds
    assert rows >= 1 << 19 or cost.seconds(rows + 1) > seconds


def test_a_cost_is_measured_only_as_far_as_that_is_quick() -> None:
    """A model that takes a tenth of a second for a row is not asked for a thousand."""
    sizes: list[int] = []

    def call(rows: int) -> None:
        sizes.append(rows)
        end = asyncio.Event()  # something to hold on to while time passes
        for _ in range(200_000 * rows):
            end.is_set()

    cost = measure_cost(call)
    assert max(sizes) < 1000
    assert cost.points[0][0] == 1
