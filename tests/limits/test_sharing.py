"""Many processes and one plan: a real Valkey between them."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier

import pytest

from app.config import LimitSettings, StorageSettings
from app.errors import RateLimited
from app.limits.limiter import RateLimits
from app.telemetry.metrics import Metrics
from tests.support.limits import admitted, drained, sharing, until
from tests.support.valkey import Valkey, running_valkey


@pytest.fixture(scope="module")
def shared_valkey() -> Iterator[Valkey]:
    """A server for all tests that leave it alone."""
    with running_valkey() as server:
        yield server


@pytest.fixture
def valkey(shared_valkey: Valkey) -> Valkey:
    """It, without anything in it."""
    shared_valkey.command("FLUSHALL")
    return shared_valkey


def test_without_redis_nothing_is_shared() -> None:
    """The state is `off`, and entering starts no task."""

    async def run() -> None:
        async with RateLimits(LimitSettings(), StorageSettings(), Metrics()) as limits:
            assert limits.state == "off"
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_processes_share_a_plan_exactly(valkey: Valkey, count: int) -> None:
    """Together they let in what the plan has: no row is lost, and at most one for each other process is too many."""

    async def run() -> None:
        async with sharing(valkey.settings, "100/day", count) as processes:
            assert 100 <= sum(await drained(processes)) <= 100 + max(1, count - 1)

    asyncio.run(run())


def test_one_process_may_use_all_of_a_plan(valkey: Valkey) -> None:
    """What the others hold ready and do not use comes free."""

    async def run() -> None:
        async with sharing(valkey.settings, "100/day", 4) as processes:
            await drained(processes, "bob", 0.1)
            assert 100 <= (await drained(processes[:1]))[0] <= 101
            assert sum(await drained(processes)) <= 3

    asyncio.run(run())


@pytest.mark.parametrize("limit", [1, 2, 7, 20, 60, 1000])
def test_bursts_everywhere_at_once_do_not_overshoot(valkey: Valkey, limit: int) -> None:
    """Processes on threads of their own, hit together: one request each beyond the plan at most, again and again."""
    count, rounds = 4, 3
    ready = Barrier(count)

    def process(limits: RateLimits) -> list[int]:
        async def run() -> list[int]:
            async with limits:
                await until(lambda: limits._store.processes == count)
                totals = []
                for number in range(rounds):
                    await asyncio.to_thread(ready.wait, 10)
                    total = 0
                    for _ in range(40):
                        total += admitted(limits, f"caller {number}", 1 + limit // 8)
                        await asyncio.sleep(0.001)
                    totals.append(total)
                await asyncio.to_thread(ready.wait, 10)
                return totals

        return asyncio.run(run())

    with ThreadPoolExecutor(count) as threads:
        plan = LimitSettings(rate_limit=f"{limit}/day")
        made = [RateLimits(plan, valkey.settings, Metrics()) for _ in range(count)]
        processes = [threads.submit(process, limits) for limits in made]
        totals = [sum(each) for each in zip(*(process.result(60) for process in processes), strict=True)]
    assert max(totals) <= limit + count
    assert min(totals) >= limit // 2


def test_the_first_burst_of_a_caller_is_not_refused(valkey: Valkey) -> None:
    """Before it has asked, each of two processes lets in a twelfth of a plan that nobody has used of late."""

    async def run() -> None:
        async with sharing(valkey.settings, "120/minute") as (first, second):
            assert admitted(first, "alice", 10) == admitted(second, "alice", 10) == 10

    asyncio.run(run())


def test_what_a_process_may_use_without_asking_is_kept_free_for_it(valkey: Valkey) -> None:
    """One that has not heard of a caller lets in no more than the others have left to it, and one request."""

    async def run() -> None:
        async with sharing(valkey.settings, "120/day") as (first, second):
            await _die(second)  # which the others cannot know yet
            counts = await drained([first], quiet_seconds=0.2)
            counts.append(admitted(second, "alice", 120))
            assert 120 <= sum(counts) <= 122

    asyncio.run(run())


def test_a_batch_that_fits_is_not_refused_for_what_others_hold_ready(valkey: Valkey) -> None:
    """One request may be larger than what its process holds, as long as there is room."""

    async def run() -> None:
        async with sharing(valkey.settings, "1000/day") as (first, second):
            first.settle(first.admit("alice", "iris"), 500)
            await until(lambda: _remaining(second) == 500)
            second.settle(second.admit("alice", "iris"), 400)
            await until(lambda: _remaining(first) == 100)

    asyncio.run(run())


def test_of_batches_too_only_one_goes_beyond_what_a_process_holds(valkey: Valkey) -> None:
    """What another process holds and has not used yet is not used up by batch after batch."""

    async def run() -> None:
        async with sharing(valkey.settings, "1000/day") as (first, second):
            admitted(second, "alice", 50)
            await until(lambda: _held(second) > 400)
            await _die(second)  # with what it holds
            rows, total = 10, 50
            for _ in range(200):
                with suppress(RateLimited):
                    first.settle(first.admit("alice", "iris"), rows)
                    total += rows
                await asyncio.sleep(0.001)
            total += admitted(second, "alice", 1000)
            assert 950 <= total <= 1000 + rows

    asyncio.run(run())


def test_a_process_hears_of_callers_that_it_has_never_seen(valkey: Valkey) -> None:
    """What others have used shows in its answers, although the caller never came here."""

    async def run() -> None:
        async with sharing(valkey.settings, "100/day") as (first, second):
            first.settle(first.admit("alice", "iris"), 90)
            await until(lambda: _remaining(second) == 10)
            assert admitted(second, "alice", 100) <= 11

    asyncio.run(run())


def test_processes_whose_clocks_began_elsewhere_have_the_same_windows(valkey: Valkey) -> None:
    """Monotonic clocks of machines differ; Redis's time is what they have in common."""

    async def run() -> None:
        clocks = [time.monotonic, lambda: time.monotonic() + 123_456.7]
        async with sharing(valkey.settings, "50/day", clocks=clocks) as processes:
            assert 50 <= sum(await drained(processes)) <= 52
            numbers = {window.number for limits in processes for window in limits._store.windows.values()}
            assert len(numbers) == 1

    asyncio.run(run())


def test_rows_given_back_are_there_for_the_others(valkey: Valkey) -> None:
    """A refusal later on, or a success, returns what was taken in every process."""

    async def run() -> None:
        async with sharing(valkey.settings, "100/day") as (first, second):
            grant = first.admit("alice", "iris")
            first.settle(grant, 100)
            await until(lambda: _remaining(second) == 0)
            first.give_back(grant)
            assert 100 <= (await drained([second]))[0] <= 101

    asyncio.run(run())


def test_windows_that_move_on_are_shared_too(valkey: Valkey) -> None:
    """Over several windows of a second, processes that ask all the time let in about what one would."""

    async def run() -> None:
        async with sharing(valkey.settings, "100/second", 3) as processes:
            ends = time.monotonic() + 3
            total = 0
            while time.monotonic() < ends:
                total += sum(admitted(limits, "alice", 5) for limits in processes)
                await asyncio.sleep(0.002)
            assert 250 <= total <= 400 + 3 * 3

    asyncio.run(run())


@pytest.mark.parametrize("orderly", [True, False])
def test_what_a_process_held_comes_free_when_it_is_gone(valkey: Valkey, orderly: bool) -> None:  # noqa: FBT001
    """At once when it leaves, within seconds when it dies; what it has used stays used."""

    async def run() -> None:
        async with sharing(valkey.settings, "1000/day", 1) as (stays,):
            leaves = RateLimits(LimitSettings(rate_limit="1000/day"), valkey.settings, Metrics())
            async with leaves:
                await until(lambda: leaves._store.processes == stays._store.processes == 2)
                admitted(leaves, "alice", 50)
                await until(lambda: _held(leaves) > 100)
                if not orderly:
                    await _die(leaves)
            used = 1000 - _remaining(leaves)
            began = time.monotonic()
            await until(lambda: stays._store.processes == 1)
            assert not orderly or time.monotonic() - began < 1
            assert 1000 <= used + (await drained([stays]))[0] <= 1001

    asyncio.run(run())


def _remaining(limits: RateLimits) -> int:
    usages = limits.usage("alice", None)
    return usages[0].remaining if usages else -1


async def _die(limits: RateLimits) -> None:
    """From now on it tells nothing."""
    assert limits._sharing is not None
    assert limits._sharing._task is not None
    while not limits._sharing._task.done():
        limits._sharing._task.cancel()
        await asyncio.sleep(0)
    limits._sharing.state = "down"


def _held(limits: RateLimits) -> float:
    return max(window.ceiling - window.spent for window in limits._store.windows.values())
