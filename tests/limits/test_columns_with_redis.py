"""Columns beside Redis: it decides while it is there, and without it the processes of a service still have one plan."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import SecretStr

from app.config import LimitSettings, StorageSettings
from app.limits.limiter import RateLimits
from app.telemetry.metrics import Metrics
from tests.support.columns import shared_regions, worker_limits
from tests.support.limits import admitted, drained, until
from tests.support.server import free_port
from tests.support.valkey import Valkey, running_valkey

RATE = "100/day"


def test_without_redis_the_processes_of_a_service_keep_the_plan_together() -> None:
    """What was used through Redis counts on, also what another service has used; what comes next is told later."""

    async def run(valkey: Valkey) -> None:
        async with _service(valkey) as (first, second), _elsewhere(valkey) as elsewhere:
            await until(lambda: all(limits._store.processes == 3 for limits in (first, second, elsewhere)))
            elsewhere.settle(elsewhere.admit("alice", "iris"), 30)
            first.settle(first.admit("alice", "iris"), 20)
            await until(lambda: _used(first) == _used(second) == _used(elsewhere) == 50)
            await asyncio.to_thread(valkey.kill)
            await until(lambda: first.state == second.state == elsewhere.state == "down")
            assert admitted(first, "alice", 20) + admitted(second, "alice", 60) == 50
            assert admitted(second, "bob", 60) + admitted(first, "bob", 60) == 100
            await asyncio.to_thread(valkey.start)
            await until(lambda: first.state == second.state == elsewhere.state == "up")
            await until(lambda: _used(elsewhere) == 100 and _used(elsewhere, "bob") == 100)
            assert sum(await drained([first, second, elsewhere], "bob", 0.2)) == 0

    with running_valkey() as valkey:
        asyncio.run(run(valkey))


def test_who_starts_while_redis_is_away_has_the_windows_of_the_others() -> None:
    """They go by Redis's time, which the newcomer learns from them."""

    async def run(valkey: Valkey) -> None:
        regions = shared_regions(4)
        async with worker_limits(RATE, regions, 1, storage=valkey.settings) as first:
            await until(lambda: first.state == "up")
            await asyncio.to_thread(valkey.kill)
            await until(lambda: first.state == "down")
            assert admitted(first, "alice", 60) == 60
            async with worker_limits(RATE, regions, 0, storage=valkey.settings) as second:
                assert admitted(second, "alice", 60) == 40
                assert second._store.windows.popitem()[1].number == first._store.windows.popitem()[1].number

    with running_valkey() as valkey:
        asyncio.run(run(valkey))


def test_who_has_not_heard_from_redis_yet_follows_those_who_have() -> None:
    """Two that have counted by their own clock, of which one then reaches Redis: the other goes by its time, too."""

    async def run(valkey: Valkey) -> None:
        regions = shared_regions(2)
        unreachable = StorageSettings(redis_url=SecretStr(f"redis://127.0.0.1:{free_port()}/0"))
        async with worker_limits(RATE, regions, 0, storage=unreachable) as first:
            assert admitted(first, "alice", 30) == 30
            async with worker_limits(RATE, regions, 1, storage=valkey.settings) as second:
                await until(lambda: second.state == "up")
                await until(lambda: first._store.offset == second._store.offset)
                assert admitted(second, "alice", 20) == 20
                assert admitted(first, "alice", 99) == 50

    with running_valkey() as valkey:
        asyncio.run(run(valkey))


def test_what_a_process_had_told_is_counted_once_when_another_has_its_column() -> None:
    """Whoever goes on with it is the same process to Redis."""

    async def run(valkey: Valkey) -> None:
        regions = shared_regions(2)
        async with _elsewhere(valkey) as elsewhere:
            dies = worker_limits(RATE, regions, 0, storage=valkey.settings)
            async with dies:
                await until(lambda: elsewhere._store.processes == 2 == dies._store.processes)
                dies.settle(dies.admit("alice", "iris"), 30)
                await until(lambda: _used(elsewhere) == 30)
            async with worker_limits(RATE, regions, 0, storage=valkey.settings) as successor:
                await until(lambda: elsewhere._store.processes == 2 == successor._store.processes)
                assert 70 <= sum(await drained([successor, elsewhere])) <= 71
                await until(lambda: _used(successor) == _used(elsewhere) >= 100)

    with running_valkey() as valkey:
        asyncio.run(run(valkey))


def test_a_window_that_comes_back_has_no_share_that_is_free_unasked() -> None:
    """The others keep one for who has not begun; who has must ask, but for one request."""

    async def run(valkey: Valkey) -> None:
        async with _service(valkey) as (first, second):
            await until(lambda: first._store.processes == second._store.processes == 2)
            assert admitted(first, "alice", 5) == 5
            await until(lambda: _used(second) == 5)
            first._store._most = 1
            assert admitted(first, "bob") == 1
            assert admitted(first, "alice", 20) == 1

    with running_valkey() as valkey:
        asyncio.run(run(valkey))


@asynccontextmanager
async def _service(valkey: Valkey) -> AsyncIterator[tuple[RateLimits, RateLimits]]:
    """Two of its processes."""
    regions = shared_regions(4)
    async with (
        worker_limits(RATE, regions, 0, storage=valkey.settings) as first,
        worker_limits(RATE, regions, 1, storage=valkey.settings) as second,
    ):
        yield first, second


def _elsewhere(valkey: Valkey) -> RateLimits:
    """A process of another service, which has no column here."""
    return RateLimits(LimitSettings(rate_limit=RATE), valkey.settings, Metrics())


def _used(limits: RateLimits, who: str = "alice") -> int:
    return sum(usage.used for usage in limits.usage(who, None))
