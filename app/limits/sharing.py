"""Sharing: the task that lets the processes of a service, on one machine or many, draw on the same windows.

Requests never wait for it, and it never waits long for Redis. Where Redis is away, slow or broken, this process decides
alone, and tells what it has counted once Redis is back.
"""

import asyncio
import math
import random
import secrets
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Literal, cast

import structlog

from app.limits.exchange import ALIVE, EVERYTHING, MOST_WINDOWS, SCRIPT, Answer, Asked, Share, answer, question
from app.limits.store import Clock, LocalStorage
from app.limits.windows import Window
from app.storage.redis import Redis
from app.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_EVERY_SECONDS = 0.05
# Ten times what an exchange keeps the event loop busy for, and each window in it.
_APART_SECONDS = 0.002
_APART_SECONDS_PER_WINDOW = 0.0002
_EXCHANGE_SECONDS = 0.05
_CONNECT_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 1.0
_LEAVE_SECONDS = 0.2
# Clocks run apart by less than this between two exchanges, unless one of them was set.
_DRIFT_SECONDS = 0.005


class Sharing:
    """`state` says whether the others are heard: `up` from the first exchange that succeeds to the next that fails."""

    def __init__(self, redis: Redis, store: LocalStorage, metrics: Metrics, clock: Clock = time.monotonic) -> None:
        """`clock` is the store's."""
        self.state: Literal["up", "down"] = "down"
        self._redis = redis
        self._store = store
        self._gauge = metrics.limits_redis_up
        self._clock = clock
        # Whoever has had the column before is known by the same name: what they had used is told as one's own.
        self._process = store.columns.name if store.columns else secrets.token_hex(4)
        self._heard = "0"
        self._told = 0  # windows in the last exchange
        self._placed = False  # whether the common time is known
        self._said: str | None = None  # the state that the log has last
        self._soon = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        store.tell_soon = self._soon.set

    def start(self) -> None:
        """Begin, on the loop that runs."""
        self._task = asyncio.create_task(self._run(), name="limits-sharing")

    async def stop(self) -> None:
        """Tell the others what they do not know yet, if that can be done at once, and leave."""
        while self._task is not None and not self._task.done():
            self._task.cancel()  # of which Python 3.11 loses one now and then, in wait_for
            await asyncio.wait([self._task], timeout=_EXCHANGE_SECONDS)
        with suppress(Exception):
            async with asyncio.timeout(_LEAVE_SECONDS):
                if self.state == "up":
                    await self._exchange()
                    await self._redis.zrem(ALIVE, self._process)
        with suppress(Exception):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._redis.aclose()

    async def _run(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self._exchange() if self.state == "up" else await self._join()
            except Exception as error:  # noqa: BLE001 -- whatever it is, this process goes on alone
                failures += 1
                # A loop that was busy itself proves nothing about Redis; twice in a row is once too often.
                was_busy = time.monotonic() - began > 2 * _EXCHANGE_SECONDS
                if self.state == "up" and was_busy and failures == 1:
                    continue
                self._went_down(error)
                await asyncio.sleep(_pause(failures))
            else:
                failures = 0
                await self._rest()

    async def _rest(self) -> None:
        """Until the others should hear again; in between, requests have the loop for most of the time."""
        apart = _APART_SECONDS + self._told * _APART_SECONDS_PER_WINDOW
        await asyncio.sleep(apart)
        with suppress(TimeoutError):
            async with asyncio.timeout(_EVERY_SECONDS - apart):
                await self._soon.wait()
        self._soon.clear()

    async def _join(self) -> None:
        """Connect, which may take longer than an exchange, and learn the time before anything is told."""
        async with asyncio.timeout(_CONNECT_SECONDS):
            await cast("Awaitable[bool]", self._redis.ping())
        await self._exchange()
        self._store.mark_all()
        self.state = "up"
        self._gauge.set(1)
        self._say("up")

    def _went_down(self, error: Exception) -> None:
        self._store.decide_alone()
        self.state = "down"
        self._gauge.set(0)
        self._say("down", reason=type(error).__name__)  # its text may hold the address

    def _say(self, state: str, **more: str) -> None:
        if state != self._said:
            self._said = state
            write = log.info if state == "up" else log.warning
            write(f"limits_redis_{state}", **more)

    async def _exchange(self) -> None:
        """Tell and hear once. Raises whatever Redis, the network and time-outs raise; then nothing was heard."""
        untold = self._store.untold[:MOST_WINDOWS]
        del self._store.untold[:MOST_WINDOWS]
        self._told = len(untold)
        asked = [self._ask(window) for window in untold]
        keys, arguments = question(self._process, self._heard, asked)
        sent = self._clock()
        try:
            async with asyncio.timeout(_EXCHANGE_SECONDS):
                reply = await cast("Awaitable[list[bytes]]", self._redis.eval(SCRIPT, len(keys), *keys, *arguments))
            found = answer(reply)
        except BaseException:
            for window in untold:
                self._store.mark(window)
            raise
        self._set_clock(found.time, sent, self._clock())
        self._hear(found)
        for one, share in zip(asked, found.shares, strict=True):
            self._settle(one, share)

    def _ask(self, window: Window) -> Asked:
        """What is said of a window. What this process does not ask to keep it must not use from now on."""
        self._store.elapsed(window)
        spare = int(self._spare(window))
        held = 0 if math.isinf(window.ceiling) else max(0, int(window.ceiling) - window.spent)
        if window.active:
            keep, wanted = min(held, spare + 2 * max(0, window.spent - window.told)), EVERYTHING
        else:
            keep, wanted = min(held, spare), spare
        if not math.isinf(window.ceiling):
            window.ceiling = window.spent + keep
        window.told, window.active, window.dirty = window.spent, False, False
        return Asked(window, window.number, window.spent, window.own_before, keep, wanted)

    def _spare(self, window: Window) -> float:
        """What may be held without need: a small share, as long as half of the rate is left."""
        plenty = 2 * window.remaining(self._store.elapsed(window)) >= window.limit
        return self._store.unasked(window.limit) if plenty and self._store.processes else 0

    def _hear(self, found: Answer) -> None:
        self._store.processes = found.processes
        self._heard = found.heard
        if found.joined:  # or Redis has forgotten that we had
            self._store.mark_all()
        for key in found.news:
            limit, seconds, _ = key.split("/", 2)
            self._store.mark(self._store.heard_of(key, int(limit), int(seconds)))
        if 0 < len(found.news) < MOST_WINDOWS:
            self._soon.set()

    def _settle(self, asked: Asked, share: Share) -> None:
        window = asked.window
        elapsed = self._store.elapsed(window)
        if window.number != asked.number:
            self._store.mark(window)
            return
        window.shared(asked.spent + share.held, share.others, share.others_claims, share.previous, elapsed)
        self._store.complete(window)
        window.wake_at = asked.spent + share.held / 2
        if share.held > self._spare(window):  # to be given back, unless it is used
            self._store.mark(window)
        if window.spent > window.wake_at:
            self._soon.set()

    def _set_clock(self, common: float, sent: float, received: float) -> None:
        """Redis's time, which was `common` at some moment between the two, is the time of windows."""
        offset = common - (sent + received) / 2
        away = abs(offset - self._store.offset)
        if not self._placed or away > (received - sent) / 2 + _DRIFT_SECONDS:
            self._placed = True
            self._store.follow(offset)


def _pause(failures: int) -> float:
    """Seconds until Redis is tried again: longer each time, and not the same for every process."""
    longest = min(_LONGEST_PAUSE_SECONDS, _EVERY_SECONDS * 2.0 ** min(failures, 10))
    return longest * random.uniform(0.5, 1)  # noqa: S311 -- nothing depends on its being secret
