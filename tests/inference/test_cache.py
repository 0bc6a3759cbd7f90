"""The cache changes no answer, and asks the model once for what is asked often, whatever becomes of who asked first."""

import asyncio
import gc
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from app.config import CacheSettings, StorageSettings
from app.errors import FieldError, InvalidSettings, Overloaded
from app.inference.cache import MEMORY_SECONDS, REDIS_SECONDS, PredictionCache
from app.inference.execution import Outcome
from app.manifest import InputField, Outputs
from app.pipelines.base import Prediction, Row
from app.registry.loader import LoadedModel
from app.runtimes.cost import Cost
from app.telemetry.metrics import Metrics
from tests.support.caching import Asked, caching, counted, load, model_of, numbers, of, value
from tests.support.estimators import Brittle
from tests.support.limits import ManualClock, until
from tests.support.manifests import make_manifest
from tests.support.versions import NUMBER, X, write_classifier

FIELDS = (
    InputField(name="a", dtype="float", missing="allow"),
    InputField(name="n", dtype="integer"),
    InputField(name="c", dtype="category", categories=("1", "x")),
    InputField(name="t", dtype="text", max_length=9),
)
MIXED = make_manifest(*FIELDS, container="objects", task="regression", outputs=NUMBER)
ONE = make_manifest(X, task="regression", outputs=NUMBER)
BRITTLE = make_manifest(X, outputs=Outputs(target="t", labels=("less", "more")))

# Written as callers would: few values, in several ways each.
CANDIDATE = st.fixed_dictionaries(
    {
        "t": st.sampled_from(["né", "ne\u0301", "1"]),
        "c": st.sampled_from(["1", "x"]),
        "n": st.sampled_from([0, 1, -1]),
    },
    optional={"a": st.sampled_from([None, 0, 0.0, -0.0, 1, 1.0, 0.1, 0.1 + 0.2, 0.3])},
)


def run(test: Coroutine[Any, Any, None], *, collect: bool = True) -> None:
    """On a loop that nothing goes wrong on behind the back of who asks, and that no task is left on."""
    complaints: list[Any] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        before = asyncio.all_tasks()
        await test
        await asyncio.sleep(0)
        if collect:
            gc.collect()  # a future whose exception nobody looked at complains when it goes
        assert asyncio.all_tasks() == before

    asyncio.run(watched())
    assert complaints == []


def brittle(**rules: Any) -> LoadedModel:
    """Raises for 13."""
    return model_of(BRITTLE, Brittle().fit([[0.0], [1.0]], ["less", "more"]), **rules)


@settings(max_examples=150, deadline=None)
@given(requests=st.lists(st.lists(CANDIDATE, min_size=1, max_size=6), min_size=1, max_size=8), turns=st.integers(1, 2))
def test_every_request_gets_what_it_would_get_without_a_cache(requests: list[list[Any]], turns: int) -> None:
    """At once or one after the other, alone or in batches; and the model never sees a row twice."""
    model = model_of(MIXED)
    rows: list[list[Any]] = [model.pipeline.validate(candidates) for candidates in requests]

    async def test() -> None:
        asked, plain = Asked(model), Asked(model)
        async with caching() as cache:
            for _ in range(turns):
                answers = await asyncio.gather(*(asked.through(of(cache, model), some) for some in rows))
                for some, (outcomes, _) in zip(rows, answers, strict=True):
                    assert list(map(value, outcomes)) == list(map(value, await plain(some)))
        values = {repr(model.pipeline.identity(row)) for some in rows for row in some}
        assert asked.count == len(values)
        asked.close()
        plain.close()

    run(test(), collect=False)


def test_a_batch_runs_only_what_is_not_known() -> None:
    """Each row once, in the order of the batch; and it says which were not run."""

    async def test() -> None:
        model, metrics = model_of(ONE), Metrics()
        asked = Asked(model)
        async with caching(metrics=metrics) as cache:
            await asked.through(of(cache, model), numbers(2))
            outcomes, cached = await asked.through(of(cache, model), numbers(1, 2, 3, 1))
        assert asked.rows == [numbers(2), numbers(1, 3)]
        assert cached == [False, True, False, True]
        assert outcomes[0] == outcomes[3] != outcomes[1]
        assert counted(metrics) == {"miss": 3, "hit_memory": 1, "joined": 1}
        asked.close()

    run(test())


def test_identical_rows_at_once_are_one() -> None:
    """200 callers of an empty cache are one row for the model."""

    async def test() -> None:
        model, metrics = model_of(ONE), Metrics()
        asked = Asked(model)
        async with caching(metrics=metrics) as cache:
            rows = of(cache, model)
            answers = await asyncio.gather(*(asked.through(rows, numbers(7)) for _ in range(200)))
        assert asked.rows == [numbers(7)]
        assert len({value(outcomes[0]) for outcomes, _ in answers}) == 1
        assert sum(cached == [True] for _, cached in answers) == 199
        assert counted(metrics) == {"miss": 1, "joined": 199}
        asked.close()

    run(test())


def test_requests_that_overlap_all_come_to_an_end() -> None:
    """Each computes what no earlier one has set out to, and waits for the rest."""

    async def test() -> None:
        model = model_of(ONE)
        asked = Asked(model)
        asked.gate.clear()
        async with caching() as cache:
            rows = of(cache, model)
            orders = (numbers(1, 2), numbers(2, 3), numbers(3, 1))
            calls = [asyncio.create_task(asked.through(rows, order)) for order in orders]
            await until(lambda: len(asked.rows) == 2)
            asked.gate.set()
            cached = [cached for _, cached in await asyncio.gather(*calls)]
        assert asked.rows == [numbers(1, 2), numbers(3)]
        assert cached == [[False, False], [True, False], [True, True]]
        asked.close()

    run(test())


@pytest.mark.parametrize("fate", ["refused", "cancelled", "broken"])
def test_who_waits_does_not_share_the_fate_of_who_came_first(fate: str) -> None:
    """The first fails with what befell it alone; the others ask for themselves."""

    async def test() -> None:
        model = model_of(ONE)
        asked = Asked(model)
        go = asyncio.Event()

        async def fail(_: Sequence[int]) -> list[Outcome]:
            await go.wait()
            raise Overloaded("too much is waiting") if fate == "refused" else RuntimeError("broken")

        async with caching() as cache:
            rows = of(cache, model)
            first = asyncio.create_task(rows.answer(numbers(7), "me", fail))
            await asyncio.sleep(0)
            others = [asyncio.create_task(asked.through(rows, numbers(7))) for _ in range(3)]
            await asyncio.sleep(0)
            assert asked.count == 0
            go.set() if fate != "cancelled" else first.cancel()
            (failed,) = await asyncio.gather(first, return_exceptions=True)
            assert type(failed).__name__ == {"refused": "Overloaded", "broken": "RuntimeError"}.get(
                fate, "CancelledError"
            )
            answers = await asyncio.gather(*others)
            assert [cached for _, cached in answers] == [[False]] * 3
            assert len({value(outcomes[0]) for outcomes, _ in answers}) == 1
            assert (await rows.answer(numbers(7), "me", fail))[1] == [True]
        asked.close()

    run(test())


def test_who_gives_up_takes_nobody_along() -> None:
    """Of those who wait, one is cancelled; the first and the others get their answer."""

    async def test() -> None:
        model = model_of(ONE)
        asked = Asked(model)
        asked.gate.clear()
        async with caching() as cache:
            rows = of(cache, model)
            calls = [asyncio.create_task(asked.through(rows, numbers(7))) for _ in range(3)]
            await until(lambda: asked.count == 1)
            calls[1].cancel()
            await asyncio.sleep(0)
            asked.gate.set()
            first, given_up, other = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(given_up, asyncio.CancelledError)
        assert isinstance(first, tuple)
        assert isinstance(other, tuple)
        assert (first[0], first[1], other[1]) == (other[0], [False], [True])
        assert asked.count == 1
        asked.close()

    run(test())


def test_a_row_that_fails_is_tried_again_each_time() -> None:
    """By who waited for it, and by who comes later; its neighbours in the batch are kept."""

    async def test() -> None:
        model, metrics = brittle(), Metrics()
        asked = Asked(model)
        asked.gate.clear()
        with structlog.testing.capture_logs():
            async with caching(metrics=metrics) as cache:
                rows = of(cache, model)
                calls = [asyncio.create_task(asked.through(rows, numbers(5, 13, 13))) for _ in range(2)]
                await until(lambda: asked.count == 2)
                asked.gate.set()
                answers = await asyncio.gather(*calls)
                answers.append(await asked.through(rows, numbers(5, 13, 13)))
        assert [list(map(value, outcomes)) for outcomes, _ in answers] == [["less", "model_failed", "model_failed"]] * 3
        assert [cached for _, cached in answers] == [[False, False, True], [True, False, True], [True, False, True]]
        assert asked.rows == [numbers(5, 13), numbers(13), numbers(13)]
        assert counted(metrics) == {"miss": 4, "joined": 4, "hit_memory": 1}
        asked.close()

    run(test())


def test_a_small_request_does_not_wait_for_a_large_one() -> None:
    """Which the model may be at for seconds; another of its size waits."""

    async def test() -> None:
        model = model_of(ONE)
        asked, large = Asked(model), Asked(model)
        large.gate.clear()
        async with caching() as cache:
            rows = of(cache, model)
            many = numbers(*range(1000))
            calls = [asyncio.create_task(large.through(rows, many)) for _ in range(2)]
            await until(lambda: large.count == 1000)
            assert (await asked.through(rows, numbers(7)))[1] == [False]
            large.gate.set()
            first, second = await asyncio.gather(*calls)
            assert first[0] == second[0]
        assert (asked.count, large.count) == (1, 1000)
        asked.close()
        large.close()

    run(test())


def test_nobody_waits_for_another_beyond_their_own_time() -> None:
    """Who came first may have all day."""

    async def test() -> None:
        model = model_of(ONE)
        slow, asked = Asked(model), Asked(model)
        slow.gate.clear()
        async with caching() as cache:
            rows = of(cache, model)
            first = asyncio.create_task(slow.through(rows, numbers(7)))
            await until(lambda: slow.count == 1)
            for seconds in (0.02, -1.0):
                deadline = time.perf_counter() + seconds
                assert (await asked.through(rows, numbers(7), deadline=deadline))[1] == [seconds < 0]
            slow.gate.set()
            await first
        asked.close()
        slow.close()

    run(test())


def test_what_one_request_does_to_its_answer_no_other_sees(tmp_path: Path) -> None:
    """Computed, found, joined, or a twin in the batch: everybody has probabilities of their own."""
    write_classifier(tmp_path)

    async def test() -> None:
        model = load(tmp_path)
        asked = Asked(model)
        async with caching() as cache:
            rows = of(cache, model)
            calls = [asked.through(rows, numbers(7, 7)) for _ in range(2)]
            answers = [*await asyncio.gather(*calls), await asked.through(rows, numbers(7, 7))]
        outcomes = [outcome for found, _ in answers for outcome in found]
        shares = [outcome.probabilities for outcome in outcomes if isinstance(outcome, Prediction)]
        assert len(shares) == len({id(share) for share in shares}) == 6
        assert all(share == shares[0] for share in shares)
        asked.close()

    run(test())


def test_a_private_model_answers_each_principal_anew() -> None:
    """Also those that ask at the same time; without the rule they share."""

    async def test() -> None:
        for rule, count in (("private", 2), ("shared", 1)):
            model = model_of(ONE, cache=rule)
            asked = Asked(model)
            async with caching() as cache:
                rows = of(cache, model)
                await asyncio.gather(*(asked.through(rows, numbers(7), who) for who in ("alice", "bob", "alice")))
                assert (await asked.through(rows, numbers(7), "bob"))[1] == [True]
            assert asked.count == count
            asked.close()

    run(test())


@pytest.mark.parametrize(("rules", "seconds"), [({}, 300), ({"ttl_seconds": 5}, 5)])
def test_an_answer_is_forgotten_at_its_age(rules: dict[str, Any], seconds: int) -> None:
    """That of the settings, unless the model has one of its own."""

    async def test() -> None:
        clock = ManualClock()
        model = model_of(ONE, **rules)
        asked = Asked(model)
        async with caching(clock=clock, cache_ttl_seconds=300) as cache:
            rows = of(cache, model)
            found = []
            for clock.now in (0, seconds - 0.001, seconds, 2 * seconds - 0.001):
                found += (await asked.through(rows, numbers(7)))[1]
        assert found == [False, True, False, True]
        asked.close()

    run(test())


def test_the_bytes_of_all_models_together_are_bounded() -> None:
    """And the metrics say how many entries and bytes there are."""

    async def test() -> None:
        models, metrics = [model_of(ONE), model_of(MIXED)], Metrics()
        asked = Asked(models[0])
        mixed: Row = {"a": 1.0, "n": 1, "c": "x", "t": "t"}
        async with caching(metrics=metrics, cache_max_bytes=1 << 20) as cache:
            await Asked(models[1]).through(of(cache, models[1]), [mixed])
            await asked.through(of(cache, models[0]), numbers(*range(10_000)))
            found = metrics.registry.get_sample_value
            entries, size = found("presage_cache_entries") or 0, found("presage_cache_bytes") or 0
            assert 0.9 * (1 << 20) < size <= 1 << 20
            assert 1000 < entries < 10_000
            assert (await asked.through(of(cache, models[0]), numbers(0, 9_999)))[1] == [False, True]
        asked.close()

    run(test())


def test_the_event_loop_turns_while_a_large_batch_is_looked_up() -> None:
    """Ten thousand rows, first unknown and then known, are gone through in pieces."""

    async def test() -> None:
        model = model_of(ONE)
        asked = Asked(model)
        rows = numbers(*range(10_000))
        async with caching() as cache:
            for _ in range(2):
                turns = 0
                call = asyncio.create_task(asked.through(of(cache, model), rows))
                while not call.done():
                    await asyncio.sleep(0)
                    turns += 1
                assert turns >= len(rows) // 512
        asked.close()

    run(test())


@pytest.mark.parametrize(
    ("cache", "rules", "seconds", "use"),
    [
        ("off", {}, 1.0, "off"),
        ("memory", {"cache": "off"}, 1.0, "off"),
        ("memory", {}, MEMORY_SECONDS * 0.9, "needless"),
        ("memory", {}, MEMORY_SECONDS * 1.1, "memory"),
        ("redis", {}, MEMORY_SECONDS * 0.9, "needless"),
        ("redis", {}, REDIS_SECONDS * 0.9, "memory"),
        ("redis", {"cache": "private"}, REDIS_SECONDS * 1.1, "redis"),
    ],
)
def test_a_model_is_cached_where_it_may_and_pays(cache: Any, rules: dict[str, Any], seconds: float, use: str) -> None:
    """By the setting, its rules and what it costs; where it does not pay, the log says so once."""
    storage = StorageSettings(redis_url=SecretStr("redis://127.0.0.1:1"))
    model = replace(model_of(ONE, **rules), cost=Cost(((1, seconds),)))
    with structlog.testing.capture_logs() as lines:
        opened = PredictionCache(CacheSettings(cache=cache), storage, Metrics())
        assert [opened.use(model) for _ in range(2)] == [use, use]
        assert (opened.of(model) is None) == (use in ("off", "needless"))
    skipped = {"needless": ["memory"], "memory": ["redis"] if cache == "redis" else []}.get(use, [])
    assert [(line["event"], line["level"]) for line in lines] == [("cache_needless", level) for level in skipped]


def test_redis_without_an_address_is_refused() -> None:
    """By both names."""
    with pytest.raises(InvalidSettings, match="CACHE=redis needs REDIS_URL"):
        PredictionCache(CacheSettings(cache="redis"), StorageSettings(), Metrics())


def test_an_error_is_no_entry() -> None:
    """Even where everything in a request fails."""

    async def test() -> None:
        model, metrics = brittle(), Metrics()
        asked = Asked(model)
        with structlog.testing.capture_logs():
            async with caching(metrics=metrics) as cache:
                (outcome,), cached = await asked.through(of(cache, model), numbers(13))
                assert metrics.registry.get_sample_value("presage_cache_entries") == 0
        assert isinstance(outcome, FieldError)
        assert cached == [False]
        asked.close()

    run(test())
