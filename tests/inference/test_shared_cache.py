"""Processes have their answers in common through Redis; and whatever happens to it, nobody waits and nothing fails."""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from app.config import CacheSettings, StorageSettings
from app.inference.cache import PredictionCache
from app.inference.entries import Entries
from app.inference.row_cache import RowCache
from app.inference.shared_cache import DEADLINE_SECONDS, MOST_KEYS
from app.pipelines.base import to_json
from app.telemetry.metrics import Metrics
from tests.support import redis_faults
from tests.support.caching import Asked, caching, counted, model_of, numbers, of, patient, value
from tests.support.limits import ManualClock, until
from tests.support.manifests import make_manifest
from tests.support.redis_faults import blocked, loop_lag, slowed
from tests.support.valkey import Valkey, running_valkey
from tests.support.versions import NUMBER, X

ONE = make_manifest(X, task="regression", outputs=NUMBER)
FAULTS = {
    **redis_faults.FAULTS,
    "may not read": redis_faults.without("-mget"),
    "may not write": redis_faults.without("-set"),
}
# What a busy machine may add to one answer; the median of many says whether they waited for Redis.
_BUSY_SECONDS = 0.5


@pytest.fixture(scope="module")
def shared_valkey() -> Iterator[Valkey]:
    """For tests that leave it running."""
    with running_valkey() as started:
        yield started


@pytest.fixture
def valkey(shared_valkey: Valkey) -> Valkey:
    """Running, and empty."""
    shared_valkey.command("FLUSHALL")
    return shared_valkey


def _names(valkey: Valkey) -> list[str]:
    """Of the entries in the server."""
    found = valkey.command("KEYS", "presage:cache:*").decode().splitlines()
    return [name for name in found if name.startswith("presage:cache:") and "probe" not in name]


async def _written(valkey: Valkey, count: int) -> list[str]:
    await until(lambda: len(_names(valkey)) == count)
    return _names(valkey)


def test_what_one_process_has_computed_the_other_finds(valkey: Valkey) -> None:
    """Row by row: a batch runs only what neither has seen, and what was found is remembered."""

    async def test() -> None:
        model, metrics = model_of(ONE), Metrics()
        first, second = Asked(model), Asked(model)
        async with patient(valkey) as one, patient(valkey, metrics) as other:
            answered, _ = await first.through(of(one, model), numbers(1, 2))
            await _written(valkey, 2)
            outcomes, cached = await second.through(of(other, model), numbers(3, 2, 1, 2))
            assert (outcomes[2], outcomes[1], outcomes[3]) == (*answered, answered[1])
            assert cached == [False, True, True, True]
            assert second.rows == [numbers(3)]
            assert (await second.through(of(other, model), numbers(1)))[1] == [True]
        assert counted(metrics) == {"miss": 1, "hit_redis": 2, "joined": 1, "hit_memory": 1}
        first.close()
        second.close()

    asyncio.run(test())


def test_a_private_model_is_private_in_every_process(valkey: Valkey) -> None:
    """Its principals find only what they have asked themselves, wherever that was."""

    async def test() -> None:
        model = model_of(ONE, cache="private")
        asked = Asked(model)
        async with patient(valkey) as one, patient(valkey) as other:
            await asked.through(of(one, model), numbers(1), "alice")
            await _written(valkey, 1)
            assert (await asked.through(of(other, model), numbers(1), "bob"))[1] == [False]
            assert (await asked.through(of(other, model), numbers(1), "alice"))[1] == [True]
        asked.close()

    asyncio.run(test())


def test_requests_at_the_same_time_are_one_question(valkey: Valkey) -> None:
    """A hundred callers cost Redis a handful of commands, not a hundred."""

    async def test() -> None:
        model = model_of(ONE)
        asked = Asked(model)
        async with patient(valkey) as cache:
            rows = of(cache, model)
            await asyncio.gather(*(asked.through(rows, numbers(number)) for number in range(100)))
        statistics_ = valkey.command("INFO", "commandstats").decode()
        (line,) = [line for line in statistics_.splitlines() if line.startswith("cmdstat_mget:")]
        assert int(line.partition("calls=")[2].partition(",")[0]) < 10
        asked.close()

    valkey.command("CONFIG", "RESETSTAT")
    asyncio.run(test())


def test_an_entry_leaves_redis_at_its_age(valkey: Valkey) -> None:
    """By the clock of Redis; nothing has to be swept up."""

    async def test() -> None:
        model = model_of(ONE, ttl_seconds=7)
        asked = Asked(model)
        async with patient(valkey) as cache:
            await asked.through(of(cache, model), numbers(1))
            (name,) = await _written(valkey, 1)
        left = int(valkey.command("PTTL", name).splitlines()[0].removeprefix(b":"))
        assert 0 < left <= 7000
        asked.close()

    asyncio.run(test())


@pytest.mark.parametrize(("age", "seconds"), [(290, 10), (-3600, 300)], ids=["old", "of a clock that is ahead"])
def test_what_was_found_is_kept_for_the_rest_of_its_time(valkey: Valkey, age: float, seconds: float) -> None:
    """However long it would be kept if it were new."""

    async def test() -> None:
        clock = ManualClock()
        model = model_of(ONE)
        asked = Asked(model)
        found = []
        async with patient(valkey, clock=clock) as cache:
            _plant(valkey, Entries(model).keys(numbers(1), "me")[0], made=time.time() - age)
            for clock.now in (0, seconds - 5, seconds):
                found += (await asked.through(of(cache, model), numbers(1)))[1]
                valkey.command("FLUSHALL")
        assert found == [True, True, False]
        asked.close()

    asyncio.run(test())


def test_what_is_too_old_for_the_model_is_not_used(valkey: Valkey) -> None:
    """Though whoever wrote it would keep it for longer; that is nothing invalid."""

    async def test() -> None:
        model, metrics = model_of(ONE, ttl_seconds=60), Metrics()
        asked = Asked(model)
        async with patient(valkey, metrics) as cache:
            _plant(valkey, Entries(model).keys(numbers(1), "me")[0], made=time.time() - 60)
            assert (await asked.through(of(cache, model), numbers(1)))[1] == [False]
        assert _invalid(metrics) == 0
        asked.close()

    asyncio.run(test())


def _plant(valkey: Valkey, key: bytes, *, made: float, value: Any = 5.0, owner: bytes | None = None) -> None:
    """An entry by hand."""
    valkey.store(f"presage:cache:{key.hex()}", to_json([1, (owner or key).hex(), int(made * 1000), value, None]))


def _invalid(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("presage_cache_invalid_total", {"model": "toy", "version": "1"})


@pytest.mark.parametrize("poison", ["a label", "another row's", "no JSON", "another type"])
def test_what_is_wrong_in_redis_nobody_gets(valkey: Valkey, poison: str) -> None:
    """It counts as not there, and what is right takes its place."""

    async def test() -> None:
        model, metrics = model_of(ONE), Metrics()
        asked = Asked(model)
        key, other = Entries(model).keys(numbers(1, 2), "me")
        name = f"presage:cache:{key.hex()}"
        async with patient(valkey, metrics) as cache:
            (right,) = await asked(numbers(1))
            if poison == "a label":
                _plant(valkey, key, made=time.time(), value="spam")
            elif poison == "another row's":
                _plant(valkey, key, made=time.time(), owner=other)
            elif poison == "no JSON":
                valkey.store(name, b"cos\nsystem\n(S'true'\ntR.")
            else:
                valkey.command("LPUSH", name, "1")
            outcomes, cached = await asked.through(of(cache, model), numbers(1))
            assert (outcomes, cached) == ([right], [False])
            assert _invalid(metrics) == (0 if poison == "another type" else 1)  # MGET takes it for nothing
            await until(lambda: f"{value(right)}".encode() in valkey.command("GET", name))
        asked.close()

    asyncio.run(test())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_redis_that_fails_costs_nothing_and_heals(fault: str) -> None:
    """Answers come as if there were none, soon without even asking; the log says so once, and once that it is back."""
    breaks, mends = FAULTS[fault]

    async def test(valkey: Valkey) -> None:
        model, metrics = model_of(ONE), Metrics()
        asked = Asked(model)
        async with caching("redis", valkey.settings, metrics) as cache, loop_lag() as lags:
            rows = of(cache, model)
            assert _gauge(metrics) == 1
            lines.clear()
            await asyncio.to_thread(breaks, valkey)
            times = await _times_until(lambda: len(lines) == 1, rows, asked)
            assert (cache.state, _gauge(metrics)) == ("down", 0)
            assert max(times) < _BUSY_SECONDS
            assert statistics.median(times) < DEADLINE_SECONDS
            await asyncio.to_thread(mends, valkey)
            await until(lambda: cache.state == "up")
            assert _gauge(metrics) == 1
            await asked.through(rows, numbers(-1))
            name = f"presage:cache:{Entries(model).keys(numbers(-1), 'me')[0].hex()}"
            await until(lambda: b"[1," in valkey.command("GET", name))
        assert not blocked(lags)
        asked.close()

    with running_valkey() as valkey, structlog.testing.capture_logs() as lines:
        asyncio.run(test(valkey))
    assert [line["event"] for line in lines] == ["cache_redis_down", "cache_redis_up"]
    assert str(valkey.port) not in str(lines)


async def _times_until(holds: Callable[[], bool], rows: RowCache, asked: Asked) -> list[float]:
    """Seconds that each answer takes, of 200 and more, until that is so; each is of a row that nobody knows."""
    times: list[float] = []
    async with asyncio.timeout(10):
        while not holds() or len(times) < 200:
            began = time.perf_counter()
            assert (await asked.through(rows, numbers(len(times))))[1] == [False]
            times.append(time.perf_counter() - began)
            await asyncio.sleep(0.001)
    return times


def _gauge(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("presage_cache_redis_up")


def test_while_redis_stands_still_requests_wait_for_a_moment_and_then_no_more(valkey: Valkey) -> None:
    """Those that ask in the first few milliseconds wait as long as the deadline; all later ones not at all."""

    async def test() -> None:
        model = model_of(ONE)
        asked = Asked(model)

        async def timed(cache: RowCache, number: int) -> float:
            began = time.perf_counter()
            await asked.through(cache, numbers(number))
            return time.perf_counter() - began

        async with caching("redis", valkey.settings) as cache:
            rows = of(cache, model)
            await asyncio.to_thread(valkey.freeze)
            try:
                first = await asyncio.gather(*(timed(rows, number) for number in range(20)))
                later = [await timed(rows, 100 + number) for number in range(200)]
            finally:
                valkey.thaw()
        assert statistics.median(first) < 0.04  # and not as long as a connection waits
        assert statistics.median(later[:7]) < DEADLINE_SECONDS / 2
        assert statistics.median(later) < DEADLINE_SECONDS / 2
        asked.close()

    asyncio.run(test())


def test_a_redis_that_takes_200_ms_is_not_used(valkey: Valkey) -> None:
    """It answers, and too late to be of use; once it is quick again, it is used again."""

    async def test() -> None:
        model = model_of(ONE)
        asked = Asked(model)
        async with slowed(valkey) as (settings, delay), caching("redis", settings) as cache:
            rows = of(cache, model)
            delay[0] = 0.2
            numbered = iter(range(10_000))
            times = []
            while cache.state == "up":
                began = time.perf_counter()
                await asked.through(rows, numbers(next(numbered)))
                times.append(time.perf_counter() - began)
            assert statistics.median(times) < DEADLINE_SECONDS * 4
            delay[0] = 0.0
            await until(lambda: cache.state == "up")
        asked.close()

    asyncio.run(test())


def test_a_redis_that_is_a_little_too_slow_is_found_out(valkey: Valkey) -> None:
    """Answers of 20 ms fail nothing on the wire, and would hold up every request."""

    async def test() -> None:
        async with slowed(valkey) as (settings, delay), caching("redis", settings) as cache:
            shared = cache._shared
            assert shared is not None
            delay[0] = 0.02
            async with asyncio.timeout(10):
                while cache.state == "up":
                    assert await shared.get([b"k" * 32]) == {}
                    await asyncio.sleep(0.01)

    asyncio.run(test())


def test_what_cannot_be_written_soon_is_not_kept_for_later(valkey: Valkey) -> None:
    """The queue is bounded, by entries and by bytes, while Redis takes nothing."""

    async def test() -> None:
        async with caching("redis", valkey.settings) as cache:
            shared = cache._shared
            assert shared is not None
            await asyncio.to_thread(valkey.freeze)
            try:
                for number in range(10_000):
                    shared.put(number.to_bytes(32), b"x" * 100, 1000)
                entries = len(shared._waiting)
                shared._waiting.clear()
                for number in range(100):
                    shared.put(number.to_bytes(32), b"x" * (1 << 20), 1000)
                large = len(shared._waiting)
            finally:
                valkey.thaw()
            await until(lambda: not shared._waiting and shared.state == "up")
        assert 0 < entries < 5000
        assert 0 < large < 10

    asyncio.run(test())


def test_a_question_is_bounded_too(valkey: Valkey) -> None:
    """Of a very large batch the first rows are looked for, and the others computed."""

    async def test() -> None:
        async with patient(valkey) as cache:
            shared = cache._shared
            assert shared is not None
            keys = [number.to_bytes(32) for number in range(MOST_KEYS + 1)]
            for key in keys:
                shared.put(key, b"x", 60_000)
            await _written(valkey, MOST_KEYS + 1)
            assert list(await shared.get(keys)) == keys[:MOST_KEYS]

    asyncio.run(test())


def test_a_redis_that_goes_while_nobody_asks_is_missed() -> None:
    """Within seconds; the ready body is for operators, and those ask at night."""

    async def test(valkey: Valkey) -> None:
        async with caching("redis", valkey.settings) as cache:
            await asyncio.to_thread(valkey.kill)
            await until(lambda: cache.state == "down")

    with running_valkey() as valkey:
        asyncio.run(test(valkey))


def test_a_wrong_password_is_down_until_it_is_right() -> None:
    """The process serves, says so once, and never says the password."""

    async def test(valkey: Valkey) -> None:
        model = model_of(ONE)
        asked = Asked(model)
        address = SecretStr(valkey.url.replace("right", "wrong-secret"))
        opened = PredictionCache(CacheSettings(cache="redis"), StorageSettings(redis_url=address), Metrics())
        async with opened as cache:
            await until(lambda: len(lines) == 1)
            assert (await asked.through(of(cache, model), numbers(1)))[1] == [False]
            await asyncio.to_thread(valkey.command, "CONFIG", "SET", "requirepass", "wrong-secret")
            await until(lambda: cache.state == "up")
        asked.close()

    with running_valkey(password="right") as valkey, structlog.testing.capture_logs() as lines:  # noqa: S106
        asyncio.run(test(valkey))
    assert [line["event"] for line in lines] == ["cache_redis_down", "cache_redis_up"]
    assert "secret" not in str(lines)


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_leaving_does_not_wait_for_redis(fault: str) -> None:
    """A service that ends while Redis does not answer ends all the same, and leaves no task."""
    breaks, _ = FAULTS[fault]

    async def test(valkey: Valkey) -> float:
        model = model_of(ONE)
        asked = Asked(model)
        before = asyncio.all_tasks()
        async with AsyncExitStack() as stack:
            cache = await stack.enter_async_context(caching("redis", valkey.settings))
            await asyncio.to_thread(breaks, valkey)
            await asked.through(of(cache, model), numbers(*range(1000)))
            began = time.monotonic()
        asked.close()
        assert asyncio.all_tasks() == before
        return time.monotonic() - began

    with running_valkey() as valkey:
        assert asyncio.run(test(valkey)) < 1
