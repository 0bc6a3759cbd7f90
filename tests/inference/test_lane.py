"""A lane answers row by row: what makes the model raise fails alone, and too much waiting is refused."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import FieldError, Overloaded
from app.inference.lane import FEW_CALLS, MOST_ROWS, MOST_SECONDS, Lane
from app.manifest import Outputs
from app.pipelines.base import Prediction
from app.registry.loader import LoadedModel, load_version
from app.registry.sources import DirectorySource
from app.telemetry.metrics import Metrics
from tests.support.estimators import Brittle, Forgetful, Slow
from tests.support.versions import NUMBER, one_golden, write_version

OURS = ("tests.support.estimators",)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three models that misbehave."""
    root = tmp_path_factory.mktemp("models")
    brittle = Brittle().fit(np.zeros((2, 1)), ["less", "more"])
    outputs = Outputs(target="than ten", labels=("less", "more"))
    write_version(root, brittle, name="brittle", outputs=outputs, golden=one_golden("less"))
    regression: dict[str, Any] = {"task": "regression", "outputs": NUMBER}
    write_version(root, Forgetful().fit(None, None), name="forgetful", golden=one_golden(2.0), **regression)
    write_version(root, Slow().fit(None, None), name="slow", golden=one_golden(0.0, x=0.0), **regression)
    return root


def _model(root: Path, name: str) -> LoadedModel:
    return load_version(DirectorySource(root), name, 1, OURS)


def _predict(model: LoadedModel, numbers: Sequence[float]) -> list[Any]:
    """The value of each row, or the code of its error."""

    async def ask() -> list[Any]:
        lane = Lane(model, Metrics())
        try:
            outcomes = await lane.predict([{"x": float(number)} for number in numbers])
        finally:
            lane.close()
        return [o.value if isinstance(o, Prediction) else o.code for o in outcomes]

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def brittle(root: Path) -> LoadedModel:
    """Raises for 13 and exits for 14."""
    return _model(root, "brittle")


@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(st.integers(0, 20), min_size=1, max_size=40))
def test_each_row_gets_what_it_would_get_alone(brittle: LoadedModel, numbers: list[int]) -> None:
    """Rows that make the model raise fail by themselves; the others are answered as if they were alone."""
    expected = ["model_failed" if n in (13, 14) else "more" if n > 10 else "less" for n in numbers]
    assert _predict(brittle, numbers) == expected


def test_a_model_that_forgets_rows_is_found_out(root: Path) -> None:
    """Three rows in and two out is never taken for an answer."""
    model = _model(root, "forgetful")
    assert _predict(model, [1, 2]) == [2.0, 4.0]
    assert _predict(model, [1, 2, 3]) == [2.0, 4.0, 6.0]  # halved, each half has the right length


def test_a_number_that_is_not_finite_is_no_answer(root: Path) -> None:
    """NaN fails its own row."""
    assert _predict(_model(root, "forgetful"), [1, 13, 2, 3, 4]) == [2.0, "model_failed", 4.0, 6.0, 8.0]


def test_the_event_loop_turns_while_a_model_works(root: Path) -> None:
    """A second of model work holds up nobody else."""

    async def ask() -> float:
        lane = Lane(_model(root, "slow"), Metrics())
        working = asyncio.create_task(lane.predict([{"x": 1.0}]))
        longest = 0.0
        while not working.done():
            before = time.perf_counter()
            await asyncio.sleep(0.01)
            longest = max(longest, time.perf_counter() - before)
        lane.close()
        return longest

    assert asyncio.run(ask()) < 0.5


def test_what_would_wait_too_long_is_refused_at_once_and_then_heals(root: Path) -> None:
    """By the time that calls took lately; and the refusal says when to come back."""

    async def ask() -> None:
        metrics = Metrics()
        lane = Lane(_model(root, "slow"), metrics)
        await lane.predict([{"x": 3.0}])
        calls = [asyncio.create_task(lane.predict([{"x": 0.0}])) for _ in range(100)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await lane.predict([{"x": 0.0}])
        assert caught.value.retry_after is not None
        assert caught.value.retry_after > MOST_SECONDS
        answered = [call for call in await asyncio.gather(*calls, return_exceptions=True) if isinstance(call, list)]
        assert FEW_CALLS <= len(answered) < 100
        assert await lane.predict([{"x": 0.0}]) == [Prediction(0.0)]
        assert metrics.registry.get_sample_value("presage_calls_waiting", {"model": "slow", "version": "1"}) == 0
        lane.close()

    asyncio.run(ask())


def test_many_quick_calls_may_wait(root: Path) -> None:
    """A thousand callers of a model that takes a millisecond are a second of work."""

    async def ask() -> None:
        lane = Lane(_model(root, "slow"), Metrics())
        answers = await asyncio.gather(*(lane.predict([{"x": 0.0}]) for _ in range(1_000)))
        assert len(answers) == 1_000
        lane.close()

    asyncio.run(ask())


def test_more_rows_than_memory_should_hold_are_refused(root: Path) -> None:
    """Large batches fill memory while they wait; a single one is always taken."""

    async def ask() -> None:
        lane = Lane(_model(root, "slow"), Metrics())
        large = [{"x": 0.0}] * MOST_ROWS
        first = asyncio.create_task(lane.predict(large))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await lane.predict([{"x": 0.0}])
        assert len(await first) == MOST_ROWS
        lane.close()

    asyncio.run(ask())


def test_a_call_that_nobody_waits_for_any_more_is_not_run(root: Path) -> None:
    """A cancelled caller costs the model nothing."""

    async def ask() -> float | None:
        metrics = Metrics()
        lane = Lane(_model(root, "slow"), metrics)
        first = asyncio.create_task(lane.predict([{"x": 0.2}]))
        second = asyncio.create_task(lane.predict([{"x": 5.0}]))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert await lane.predict([{"x": 0.0}]) == [Prediction(0.0)]
        lane.close()
        return metrics.registry.get_sample_value("presage_call_rows_count", {"model": "slow", "version": "1"})

    assert asyncio.run(ask()) == 2


def test_a_failure_is_logged_once_for_a_call(brittle: LoadedModel) -> None:
    """Ten bad rows are one line, with the exception of the first; the caller gets none of it."""

    async def ask() -> list[Any]:
        lane = Lane(brittle, Metrics())
        outcomes = await lane.predict([{"x": 13.0}] * 10)
        lane.close()
        return list(outcomes)

    with structlog.testing.capture_logs() as lines:
        assert asyncio.run(ask()) == [FieldError("model_failed", "the model failed on this row")] * 10
    (line,) = lines
    assert (line["event"], line["model"], line["rows"]) == ("model_failed", "brittle", 10)
    assert "the canary in the coal mine" in str(line["exc_info"])


def test_a_call_that_runs_for_long_counts_for_those_behind_it(root: Path) -> None:
    """A hung estimator has no answer to be measured by; how long it has been at it is."""

    async def ask() -> None:
        lane = Lane(_model(root, "slow"), Metrics())
        calls = [asyncio.create_task(lane.predict([{"x": 3.0}]))]
        calls += [asyncio.create_task(lane.predict([{"x": 0.0}])) for _ in range(FEW_CALLS)]
        deadline = time.monotonic() + 2.5
        refused = False
        while not refused and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            try:
                await asyncio.wait_for(lane.predict([{"x": 0.0}]), 0.01)
            except Overloaded:
                refused = True
            except TimeoutError:
                continue
        assert refused
        await asyncio.gather(*calls)
        lane.close()

    asyncio.run(ask())


def test_a_model_that_fails_on_everything_is_not_asked_row_by_row(brittle: LoadedModel) -> None:
    """After some dozens of single failures the rest of the batch fails with them."""
    assert _predict(brittle, [13.0] * 5_000) == ["model_failed"] * 5_000
