"""Whatever happens to Redis: nobody waits, nothing fails, each process decides alone, and it heals by itself."""

import asyncio
import time

import pytest
import structlog
from pydantic import SecretStr

from app.config import LimitSettings, StorageSettings
from app.limits.limiter import RateLimits
from app.telemetry.metrics import Metrics
from tests.support import redis_faults
from tests.support.limits import admitted, drained, sharing, until
from tests.support.redis_faults import blocked, loop_lag, slowed
from tests.support.valkey import Valkey, running_valkey

FAULTS = {
    **redis_faults.FAULTS,
    "loses the right": redis_faults.without("-@scripting"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_process_decides_alone_until_redis_is_back(fault: str) -> None:
    """Down: the whole plan for each, no loop held up, one log line. Up again: what was counted alone is brought in."""
    breaks, mends = FAULTS[fault]

    async def run(valkey: Valkey) -> None:
        async with sharing(valkey.settings, "100/day") as (first, second):
            admitted(first, "alice", 1)
            async with loop_lag() as lags:
                await asyncio.to_thread(breaks, valkey)
                await until(lambda: first.state == second.state == "down")
                assert admitted(first, "bob", 200) == admitted(second, "bob", 200) == 100
                assert admitted(first, "carol", 60) == 60
                await asyncio.to_thread(mends, valkey)
                await until(lambda: first.state == second.state == "up")
                assert sum(await drained([first, second], "bob", 0.2)) == 0
                assert 40 <= sum(await drained([second, first], "carol")) <= 42
            assert not blocked(lags)

    with running_valkey() as valkey, structlog.testing.capture_logs() as lines:
        asyncio.run(run(valkey))
    events = [(line["event"], line["log_level"]) for line in lines]
    assert events == [("limits_redis_up", "info")] * 2 + [("limits_redis_down", "warning")] * 2 + events[:2]
    assert str(valkey.port) not in str(lines)


def test_a_redis_that_takes_200_ms_counts_as_down() -> None:
    """It answers, and too late to be of use; once it is quick again, it is used again."""

    async def run(valkey: Valkey) -> None:
        async with (
            slowed(valkey) as (settings, delay),
            sharing(settings, "100/day") as (first, second),
            loop_lag() as lags,
        ):
            delay[0] = 0.2
            await until(lambda: first.state == second.state == "down")
            assert admitted(first, "alice", 200) == 100
            await asyncio.sleep(0.5)  # long enough for late answers to arrive
            assert first.state == second.state == "down"
            delay[0] = 0.0
            await until(lambda: first.state == second.state == "up" and _used(second) == 100)
            assert sum(await drained([first, second])) <= 1
            assert not blocked(lags)

    with running_valkey() as valkey:
        asyncio.run(run(valkey))


def test_an_exchange_that_was_interrupted_counts_nothing_twice() -> None:
    """Frozen while it was being told, and told again later: a row is one row."""

    async def run(valkey: Valkey) -> None:
        async with sharing(valkey.settings, "100/day") as (first, second):
            for round_ in range(1, 4):
                await asyncio.to_thread(valkey.freeze)
                assert admitted(first, "alice", 8) == 8  # which it may without having asked
                await until(lambda: first.state == second.state == "down")
                await asyncio.to_thread(valkey.thaw)
                await until(lambda: first.state == second.state == "up")
                await until(lambda used=8 * round_: _used(second) == used)  # type: ignore[misc]
            assert 76 <= (await drained([second]))[0] <= 77

    with running_valkey() as valkey:
        asyncio.run(run(valkey))


def test_a_redis_that_forgets_everything_is_told_again() -> None:
    """Flushed in the middle of a window: no process starts over."""

    async def run(valkey: Valkey) -> None:
        async with sharing(valkey.settings, "100/day") as (first, second):
            first.settle(first.admit("alice", "iris"), 60)
            await until(lambda: _used(second) == 60)
            await asyncio.to_thread(valkey.command, "FLUSHALL")
            await until(lambda: any(b"60:" in valkey.command("HVALS", name) for name in _names(valkey)))
            assert 40 <= (await drained([second]))[0] <= 41

    with running_valkey() as valkey:
        asyncio.run(run(valkey))


def test_a_wrong_password_is_down_until_it_is_right() -> None:
    """The process serves, says so once, and never says the password."""

    async def run(valkey: Valkey) -> None:
        address = SecretStr(valkey.url.replace("right", "wrong-secret"))
        limits = RateLimits(LimitSettings(rate_limit="5/day"), StorageSettings(redis_url=address), Metrics())
        async with limits:
            await until(lambda: len(lines) == 1)
            assert limits.state == "down"
            assert admitted(limits, "alice", 9) == 5
            await asyncio.to_thread(valkey.command, "CONFIG", "SET", "requirepass", "wrong-secret")
            await until(lambda: limits.state == "up")

    with running_valkey(password="right") as valkey, structlog.testing.capture_logs() as lines:  # noqa: S106
        asyncio.run(run(valkey))
    assert [line["event"] for line in lines] == ["limits_redis_down", "limits_redis_up"]
    assert "secret" not in str(lines)


def test_the_gauge_says_whether_limits_are_shared() -> None:
    """1 while they are; 0 before, and while Redis is away."""
    metrics = Metrics()

    def gauge() -> float | None:
        return metrics.registry.get_sample_value("presage_limits_redis_up")

    async def run(valkey: Valkey) -> None:
        async with RateLimits(LimitSettings(), valkey.settings, metrics):
            assert gauge() == 0
            await until(lambda: gauge() == 1)
            await asyncio.to_thread(valkey.kill)
            await until(lambda: gauge() == 0)

    with running_valkey() as valkey:
        asyncio.run(run(valkey))


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_leaving_does_not_wait_for_redis(fault: str) -> None:
    """A service that ends while Redis does not answer ends all the same."""
    breaks, _ = FAULTS[fault]

    async def run(valkey: Valkey) -> float:
        async with sharing(valkey.settings, "100/day", 1) as (limits,):
            admitted(limits, "alice", 9)
            breaks(valkey)
            began = time.monotonic()
        return time.monotonic() - began

    with running_valkey() as valkey:
        assert asyncio.run(run(valkey)) < 1


def test_many_callers_that_are_new_hold_up_neither_the_loop_nor_redis() -> None:
    """Thousands of addresses in a second stay shared, a hundred at a time."""

    async def run(valkey: Valkey) -> None:
        async with sharing(valkey.settings, "100/day") as (first, second):
            async with loop_lag() as lags:
                for number in range(3000):
                    first.admit_address(f"2001:db8:{number:x}::/64")
                    if number % 10 == 0:
                        await asyncio.sleep(0)
                await until(lambda: not first._store.untold and len(second._store.windows) == 3000)
            assert first.state == second.state == "up"
            assert not blocked(lags)

    with running_valkey() as valkey:
        asyncio.run(run(valkey))


def _names(valkey: Valkey) -> list[str]:
    """Of what is in the server about windows."""
    return [line for line in valkey.command("KEYS", "*/iris:*").decode().splitlines() if line.startswith("presage")]


def _used(limits: RateLimits) -> int:
    return sum(usage.used for usage in limits.usage("alice", None))
