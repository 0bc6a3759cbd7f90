"""A lane answers row by row: what makes the model raise fails alone, and nothing waits for company."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import DeadlineExceeded, FieldError, LogUnavailable, Overloaded
from app.inference.lane import LOOP_SECONDS, Lane
from app.inference.turns import CallerGone, Terms
from app.pipelines.base import RawOutput
from app.registry.loader import LoadedModel
from app.runtimes.cost import Cost
from app.telemetry.metrics import Metrics
from tests.inference.conftest import ORIGIN, Load, open_desk, plain


class Fussy:
    """A runtime that is cheap by its own word, doubles its input, raises for 13, and remembers the sizes of calls."""

    name = "fussy"
    steady = True

    def __init__(self, seconds_a_row: float = 0.0) -> None:
        self.seconds_a_row = seconds_a_row
        self.calls: list[int] = []

    def predict(self, inputs: Any, rows: int) -> RawOutput:
        self.calls.append(rows)
        until = time.perf_counter() + self.seconds_a_row * rows
        while time.perf_counter() < until:
            pass
        if (inputs == 13).any():
            raise RuntimeError("planted")
        return RawOutput(values=np.asarray(inputs)[:, 0] * 2)


def _fussy(load: Load, seconds_a_row: float = 0.0) -> tuple[LoadedModel, Fussy]:
    runtime = Fussy(seconds_a_row)
    cost = Cost(((1, max(seconds_a_row, 1e-6)), (1000, 1000 * max(seconds_a_row, 1e-6))))
    return replace(load("slow"), runtime=runtime, cost=cost), runtime


def _predict(model: LoadedModel, numbers: Sequence[float], **terms: Any) -> list[Any]:
    async def ask() -> list[Any]:
        with open_desk(model) as desk:
            return await desk.values(numbers, **terms)

    return asyncio.run(ask())


@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(st.integers(0, 20), min_size=1, max_size=40), bulk=st.booleans())
def test_each_row_gets_what_it_would_get_alone(load: Load, numbers: list[int], *, bulk: bool) -> None:
    """Rows that make the model raise fail by themselves; the others are answered as if they were alone."""
    expected = ["model_failed" if n in (13, 14) else "more" if n > 10 else "less" for n in numbers]
    assert _predict(load("brittle"), numbers, bulk=bulk) == expected


@settings(max_examples=30, deadline=None)
@given(batches=st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=9), min_size=1, max_size=9))
def test_a_bad_row_spoils_none_of_those_that_came_with_it(load: Load, batches: list[list[int]]) -> None:
    """On the event loop, too: requests that were answered in one call get what they would get alone."""
    model, _ = _fussy(load)

    async def ask() -> list[list[Any]]:
        with open_desk(model) as desk:
            assert desk.lane.inline
            asked = [desk.ask(batch, subject=str(i), bulk=i % 2 == 0) for i, batch in enumerate(batches)]
            return [plain(outcomes) for outcomes in await asyncio.gather(*asked)]

    expected = [["model_failed" if n == 13 else n * 2.0 for n in batch] for batch in batches]
    assert asyncio.run(ask()) == expected


def test_what_comes_in_one_turn_of_the_loop_is_one_call(load: Load) -> None:
    """A cheap model is asked once for all of them, on the loop's own thread."""
    model, runtime = _fussy(load)

    async def ask() -> None:
        with open_desk(model) as desk:
            answers = await asyncio.gather(*(desk.ask([n], subject=str(n)) for n in range(20, 40)))
            assert [plain(answer) for answer in answers] == [[n * 2.0] for n in range(20, 40)]
            assert runtime.calls == [20]
            assert sorted(desk.recorded) == list(range(20, 40))

    asyncio.run(ask())


def test_a_large_batch_goes_in_slices_and_single_rows_between_them(load: Load) -> None:
    """Nobody waits for the end of somebody's batch, and the loop is held for a slice at most."""
    model, runtime = _fussy(load, seconds_a_row=50e-6)

    async def ask() -> None:
        with open_desk(model) as desk:
            batch = desk.ask([1.0] * 2_000, subject="batch", bulk=True)
            await asyncio.sleep(0)
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(runtime.calls) > 1
            assert await desk.values([5.0], subject="single") == [10.0]
            assert not batch.done()
            assert plain(await batch) == [2.0] * 2_000
        assert max(runtime.calls) <= LOOP_SECONDS / 50e-6 * 1.5
        assert sum(runtime.calls) == 2_001

    asyncio.run(ask())


def test_single_rows_do_not_starve_a_batch(load: Load) -> None:
    """A part of each slice is kept for batches, however many single rows there are."""
    model, _ = _fussy(load, seconds_a_row=50e-6)

    async def ask() -> None:
        with open_desk(model) as desk:
            singles = [desk.ask([1.0], subject=str(n)) for n in range(1_000)]
            batch = desk.ask([3.0] * 50, subject="batch", bulk=True)
            await batch
            assert not all(single.done() for single in singles)
            await asyncio.gather(*singles)

    asyncio.run(ask())


def test_what_somebody_wrote_themselves_never_works_on_the_event_loop(load: Load) -> None:
    """Its warm-up says nothing about what it does on another row: a second of its work holds up nobody."""

    async def ask() -> float:
        with open_desk(load("slow")) as desk:
            working = desk.ask([1.0])
            longest = 0.0
            while not working.done():
                before = time.perf_counter()
                await asyncio.sleep(0.01)
                longest = max(longest, time.perf_counter() - before)
        return longest

    assert asyncio.run(ask()) < 0.5


def test_one_that_turns_out_costly_leaves_the_event_loop(load: Load) -> None:
    """What was cheap at the warm-up and is not any more gets a thread, and goes on answering."""
    model, runtime = _fussy(load)

    async def ask() -> None:
        with structlog.testing.capture_logs() as lines, open_desk(model) as desk:
            before = desk.lane.inline
            runtime.seconds_a_row = 0.002
            for n in range(20, 120):
                assert await desk.values([n]) == [n * 2.0]
            assert (before, desk.lane.inline) == (True, False)
        assert [line["event"] for line in lines].count("lane_left_the_loop") == 1

    asyncio.run(ask())


def test_a_row_that_is_large_by_itself_has_the_thread(load: Load) -> None:
    """A text of a hundred times the usual size holds the loop for no longer than a usual one."""
    model, runtime = _fussy(load, seconds_a_row=50e-6)

    async def ask() -> None:
        with open_desk(model) as desk:
            desk.lane._weigh = lambda rows: [1_000.0 * len(rows)]
            answer = desk.ask([1.0])
            await asyncio.sleep(0)
            assert not runtime.calls or not answer.done()
            assert plain(await answer) == [2.0]

    asyncio.run(ask())


def test_a_model_that_forgets_rows_is_found_out(load: Load) -> None:
    """Three rows in and two out is never taken for an answer: halved, each half has the right length."""
    assert _predict(load("forgetful"), [1, 2]) == [2.0, 4.0]
    assert _predict(load("forgetful"), [1, 2, 3]) == [2.0, 4.0, 6.0]


def test_a_number_that_is_not_finite_is_no_answer(load: Load) -> None:
    """NaN fails its own row."""
    assert _predict(load("forgetful"), [1, 13, 2, 3, 4]) == [2.0, "model_failed", 4.0, 6.0, 8.0]


def test_many_quick_calls_may_wait(load: Load) -> None:
    """A thousand callers of a model that takes a millisecond are a second of work."""

    async def ask() -> None:
        with open_desk(load("slow")) as desk:
            answers = await asyncio.gather(*(desk.ask([0.0], subject=str(n)) for n in range(1_000)))
            assert len(answers) == 1_000

    asyncio.run(ask())


def test_a_call_whose_caller_was_cancelled_is_not_run(load: Load) -> None:
    """It costs the model nothing, and is not on record."""

    async def ask() -> None:
        with open_desk(load("slow")) as desk:
            first = desk.ask([0.2])
            await asyncio.sleep(0.05)
            second = desk.ask([5.0])
            second.cancel()
            await first
            assert await desk.values([0.0]) == [0.0]
            assert desk.recorded == [0.2, 0.0]

    asyncio.run(ask())


def test_a_call_whose_caller_has_gone_away_is_not_run(load: Load) -> None:
    """Nobody is told, and the next in turn is asked."""
    here = [True]

    async def ask() -> None:
        with open_desk(load("slow")) as desk:
            first = desk.ask([0.2])
            await asyncio.sleep(0.05)
            second = desk.ask([5.0], gone=lambda: not here[0])
            here[0] = False
            await first
            with pytest.raises(CallerGone):
                await second
            assert desk.recorded == [0.2]

    asyncio.run(ask())


def test_a_deadline_that_passes_while_waiting_drops_the_work(load: Load) -> None:
    """The caller hears at the deadline, not when its turn would have come, and the model is not asked."""

    async def ask() -> None:
        with open_desk(load("slow")) as desk:
            first = desk.ask([0.6])
            await asyncio.sleep(0.01)
            started = time.perf_counter()
            second = desk.ask([5.0], subject="b", deadline=started + 0.15)
            with pytest.raises(DeadlineExceeded):
                await second
            assert time.perf_counter() - started < 0.5
            await first
            assert desk.recorded == [0.6]

    asyncio.run(ask())


def test_a_model_that_hangs_does_not_hang_its_callers(load: Load) -> None:
    """At the deadline they are told; and whoever comes meanwhile is refused at once."""

    async def ask() -> None:
        with open_desk(load("slow")) as desk:
            now = time.perf_counter()
            working = desk.ask([3.0], deadline=now + 0.3)
            with pytest.raises(DeadlineExceeded):
                await working
            assert time.perf_counter() - now < 1.0
            with pytest.raises(Overloaded):
                desk.ask([0.0], deadline=time.perf_counter() + 0.1)

    asyncio.run(ask())


def test_one_slow_call_does_not_shut_the_model_off(load: Load) -> None:
    """Once it is idle again it is asked again, whatever the last call took."""

    async def ask() -> None:
        with open_desk(load("slow")) as desk:
            for _ in range(3):
                await desk.values([0.5])
            assert await desk.values([0.0], deadline=time.perf_counter() + 0.2) == [0.0]

    asyncio.run(ask())


def test_a_failure_is_logged_once_for_a_call(load: Load) -> None:
    """Ten bad rows are one line, with the exception of the first; the caller gets none of it."""

    async def ask() -> list[Any]:
        with open_desk(load("brittle")) as desk:
            return list(await desk.ask([13.0] * 10))

    with structlog.testing.capture_logs() as lines:
        assert asyncio.run(ask()) == [FieldError("model_failed", "the model failed on this row")] * 10
    (line,) = lines
    assert (line["event"], line["model"], line["rows"]) == ("model_failed", "brittle", 10)
    assert "the canary in the coal mine" in str(line["exc_info"])


def test_a_model_that_fails_on_everything_is_not_asked_row_by_row(load: Load) -> None:
    """After some dozens of single failures the rest of a slice fails with them."""
    started = time.perf_counter()
    assert _predict(load("brittle"), [13.0] * 5_000, bulk=True) == ["model_failed"] * 5_000
    assert time.perf_counter() - started < 60


def test_what_cannot_be_put_on_record_is_not_answered(load: Load) -> None:
    """All who were in the slice hear of it, each with an error of their own, and the next slice is tried again."""
    broken = [True]

    async def ask() -> None:
        def record(*_: object) -> None:
            if broken[0]:
                raise LogUnavailable("planted")

        lane = Lane(load("toy"), Metrics(), record)
        asked = [lane.predict(["id"], [{"x": float(n)}], Terms(ORIGIN)) for n in range(3)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(error) for error in found] == [LogUnavailable] * 3
        assert len({id(error) for error in found}) == 3
        broken[0] = False
        assert plain(await lane.predict(["id"], [{"x": 15.0}], Terms(ORIGIN))) == ["big"]
        lane.close()

    asyncio.run(ask())


def test_nothing_is_left_waiting_once_all_is_answered(load: Load) -> None:
    """The gauge of what waits goes back to zero."""

    async def ask() -> None:
        with open_desk(load("slow")) as desk:
            await asyncio.gather(*(desk.ask([0.0] * 5, subject=str(n), bulk=n % 2 == 0) for n in range(50)))
            labels = {"model": "slow", "version": "1"}
            assert desk.metrics.registry.get_sample_value("presage_rows_waiting", labels) == 0

    asyncio.run(ask())


def test_an_answer_that_cannot_be_told_holds_nobody_else_up(load: Load) -> None:
    """A receiver that raises is logged; those beside it, and those after it, are answered."""

    class Deaf:
        def done(self) -> bool:
            return False

        def set_result(self, _: Any) -> None:
            raise OSError("planted")

        def set_exception(self, _: Any) -> None:
            raise OSError("planted")

    async def ask() -> None:
        with open_desk(load("toy")) as desk:
            terms = Terms(ORIGIN, deadline=time.perf_counter() + 60)
            desk.lane.ask(["id"], [{"x": 1.0}], terms, Deaf())
            assert await desk.values([15.0]) == ["big"]
            desk.lane.ask(["id"], [{"x": 1.0}], Terms(ORIGIN, gone=lambda: True), Deaf())
            assert await desk.values([15.0]) == ["big"]

    with structlog.testing.capture_logs() as lines:
        asyncio.run(ask())
    assert [line["event"] for line in lines] == ["answer_failed", "answer_failed"]


def test_work_that_was_done_too_late_was_done(load: Load) -> None:
    """A deadline that passes while the model works says so; one that passes before does not."""

    async def ask() -> None:
        with open_desk(load("slow")) as desk:
            working = desk.ask([0.4], deadline=time.perf_counter() + 0.1)
            await asyncio.sleep(0.02)
            waiting = desk.ask([0.0], subject="b", deadline=time.perf_counter() + 0.1)
            found = await asyncio.gather(working, waiting, return_exceptions=True)
            assert [error.worked for error in found if isinstance(error, DeadlineExceeded)] == [True, False]

    asyncio.run(ask())
