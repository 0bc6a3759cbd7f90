"""Rate limits for tests: on a clock that is moved by hand, or sharing a real Valkey."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from app.config import LimitSettings, StorageSettings
from app.errors import RateLimited
from app.limits.limiter import RateLimits
from app.telemetry.metrics import Metrics

_HANG_SECONDS = 10


class ManualClock:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def rate_limits(rate: str, clock: Callable[[], float] = time.monotonic, address_rate: str = "600/minute") -> RateLimits:
    """Limits of this process alone."""
    settings = LimitSettings(rate_limit=rate, address_rate_limit=address_rate)
    return RateLimits(settings, StorageSettings(), Metrics(), clock=clock)


def admitted(limits: RateLimits, who: str, times: int = 1, what: str = "iris") -> int:
    """How many of so many requests are let in."""
    count = 0
    for _ in range(times):
        try:
            limits.admit(who, what)
        except RateLimited:
            continue
        count += 1
    return count


async def until(holds: Callable[[], bool]) -> None:
    """Return as soon as that is so; fail when it does not become so."""
    async with asyncio.timeout(_HANG_SECONDS):
        while not holds():  # noqa: ASYNC110 -- what is waited for knows no event
            await asyncio.sleep(0.002)


@asynccontextmanager
async def sharing(
    settings: StorageSettings, rate: str, count: int = 2, clocks: Sequence[Callable[[], float]] = ()
) -> AsyncIterator[list[RateLimits]]:
    """The limits of so many processes, which know of each other; each has a clock, and a connection, of its own."""
    async with AsyncExitStack() as stack:
        found = []
        for number in range(count):
            clock = clocks[number] if clocks else time.monotonic
            limits = RateLimits(LimitSettings(rate_limit=rate), settings, Metrics(), clock=clock)
            found.append(await stack.enter_async_context(limits))
        await until(lambda: all(limits._store.processes == count for limits in found))
        yield found


async def drained(all_limits: Sequence[RateLimits], who: str = "alice", quiet_seconds: float = 0.5) -> list[int]:
    """How many each lets in until none has let anything in for ten exchanges."""
    counts = [0] * len(all_limits)
    last = time.monotonic()
    while time.monotonic() - last < quiet_seconds:
        for number, limits in enumerate(all_limits):
            if admitted(limits, who):
                counts[number] += 1
                last = time.monotonic()
        await asyncio.sleep(0.001)
    return counts
