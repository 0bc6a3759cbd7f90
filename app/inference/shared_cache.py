"""SharedCache: entries that processes have in common, in Redis.

A request asks and has its answer within 5 ms, or goes without: it never touches a connection. One task does, for all
requests that ask at the same time, and another writes what was computed. Where Redis is away, slow or broken, both end,
nobody asks any more, and it is tried again until it serves within that time.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Self, cast

import structlog

from app.storage.redis import Redis
from app.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

DEADLINE_SECONDS = 0.005
# One question of so many keys takes 1.4 ms on the loopback, most of it spent in this process.
MOST_KEYS = 512
_PREFIX = b"presage:cache:"
_PROBE = _PREFIX + b"probe"
_IDLE_SECONDS = 1.0
# A late answer is of no use to who asked, and leaves the connection as it should be; a missing one does not.
_DEADLINES_AN_EXCHANGE = 10
_CONNECT_SECONDS = 0.5
_MOST_LATE = 3
# A timer that rings later than this proves that the event loop was busy, and nothing about Redis.
_ON_TIME_SECONDS = 0.002
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_CANCEL_SECONDS = 0.05
_LEAVE_SECONDS = 0.2
# What is put into one message keeps the event loop busy for about a millisecond.
_WRITTEN_AT_ONCE = 64
_MOST_WAITING = 4096
_MOST_WAITING_BYTES = 4 << 20

Found = Mapping[bytes, bytes]
_NOTHING: Found = {}


@dataclass(slots=True)
class _Question:
    keys: Sequence[bytes]
    found: asyncio.Future[Found]


class SharedCache:
    """`state` is `up` from the moment at which Redis proved to be quick until it fails."""

    def __init__(self, redis: Redis, metrics: Metrics, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        """Connects to nothing yet."""
        self._deadline_seconds = deadline_seconds
        self._exchange_seconds = _DEADLINES_AN_EXCHANGE * deadline_seconds
        self.state: Literal["up", "down"] = "down"
        self._redis = redis
        self._gauge = metrics.cache_redis_up
        self._said: str | None = None  # the state that the log has last
        self._questions: deque[_Question] = deque()
        self._asked = asyncio.Event()
        self._watch: _Watch | None = None  # over the question that Redis has now
        self._waiting: deque[tuple[bytes, bytes, int]] = deque()  # key, value, milliseconds that it is good for
        self._waiting_bytes = 0
        self._put = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin, on the loop that runs."""
        self._tasks = [asyncio.create_task(self._run(), name="cache-redis")]

    async def stop(self) -> None:
        """Leave; what was not written yet will be computed again by somebody."""
        await _end(self._tasks)
        with suppress(Exception):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self._redis.aclose()

    async def get(self, keys: Sequence[bytes]) -> Found:
        """The values that there are of the first 512 keys, by key. Within the deadline, and never with an error."""
        if self.state == "down" or (self._watch and self._watch.overdue) or not keys:
            return _NOTHING
        question = _Question(keys[:MOST_KEYS], asyncio.get_running_loop().create_future())
        self._questions.append(question)
        self._asked.set()
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await question.found
        except TimeoutError:
            return _NOTHING

    def put(self, key: bytes, value: bytes, milliseconds: int) -> None:
        """Have it written some time soon; what is more than can be written is not."""
        full = len(self._waiting) >= _MOST_WAITING or self._waiting_bytes + len(value) > _MOST_WAITING_BYTES
        if self.state == "down" or full:
            return
        self._waiting.append((key, value, milliseconds))
        self._waiting_bytes += len(value)
        self._put.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._join()
            except Exception as error:  # noqa: BLE001 -- whatever it is, this process goes on without
                failures += 1
                if failures > 1:  # one alone is a moment's, such as that in which this process starts
                    self._say("down", reason=type(error).__name__)  # its text may hold the address
            else:
                self._say("up")
                began = time.monotonic()
                await self._serve()
                failures = 1 if time.monotonic() - began > _LONGEST_PAUSE_SECONDS else failures + 1
            await asyncio.sleep(_pause(failures))

    async def _join(self) -> None:
        """Connect, which may take long, and prove that it reads and writes, which may not."""
        async with asyncio.timeout(_CONNECT_SECONDS):
            await cast("Awaitable[bool]", self._redis.ping())
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.set(_PROBE, b"1", px=1000)
        pipeline.mget([_PROBE])
        with _Watch(self._deadline_seconds) as watch:
            async with asyncio.timeout(self._exchange_seconds):
                await pipeline.execute()
        if watch.overdue:
            raise TimeoutError

    async def _serve(self) -> None:
        """Read and write until one of both fails."""
        self.state = "up"
        self._gauge.set(1)
        both = [asyncio.create_task(part(), name=f"cache-redis-{part.__name__}") for part in (self._read, self._write)]
        self._tasks[1:] = both
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.state = "down"
            self._gauge.set(0)
            await _end(both)
            _answer(self._questions, _NOTHING)
            self._questions.clear()
            self._waiting.clear()
            self._waiting_bytes = 0

    async def _read(self) -> None:
        late = 0  # answers in a row
        while late < _MOST_LATE:
            self._asked.clear()
            if not self._questions:
                with suppress(TimeoutError):  # in which nobody asked: is it still there?
                    async with asyncio.timeout(_IDLE_SECONDS):
                        await self._asked.wait()
            late = late + 1 if await self._ask() else 0

    async def _ask(self) -> bool:
        """Put what requests ask into one question, or any question where none does; whether its answer was late.

        Raises whatever Redis, the network and time-outs raise.
        """
        questions = self._next_questions()
        keys = [key for question in questions for key in question.keys]
        names = [_name(key) for key in keys] or [_PROBE]
        found: Found = _NOTHING
        try:
            with _Watch(self._deadline_seconds) as self._watch:
                async with asyncio.timeout(self._exchange_seconds):
                    values = await cast("Awaitable[list[bytes | None]]", self._redis.mget(names))
            found = {key: value for key, value in zip(keys, values, strict=bool(keys)) if value is not None}
            return self._watch.overdue
        finally:
            self._watch = None
            _answer(questions, found)

    def _next_questions(self) -> list[_Question]:
        """Those that somebody still waits for, in the order in which they came, as many as go into one."""
        chosen: list[_Question] = []
        count = 0
        while self._questions and count + len(self._questions[0].keys) <= MOST_KEYS:
            question = self._questions.popleft()
            if not question.found.done():
                chosen.append(question)
                count += len(question.keys)
        return chosen

    async def _write(self) -> None:
        while True:
            self._put.clear()
            if not self._waiting:
                await self._put.wait()
            pipeline = self._redis.pipeline(transaction=False)
            for _ in range(min(_WRITTEN_AT_ONCE, len(self._waiting))):
                key, value, milliseconds = self._waiting.popleft()
                self._waiting_bytes -= len(value)
                pipeline.set(_name(key), value, px=milliseconds)
            async with asyncio.timeout(self._exchange_seconds):
                await pipeline.execute()

    def _say(self, state: str, **more: str) -> None:
        if state != self._said:
            self._said = state
            write = log.info if state == "up" else log.warning
            write(f"cache_redis_{state}", **more)


class _Watch:
    """Over one exchange: whether it takes longer than a request waits, unless that is this loop's own fault."""

    def __init__(self, seconds: float) -> None:
        self.overdue = False
        self._seconds = seconds

    def __enter__(self) -> Self:
        self._due = time.monotonic() + self._seconds
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._ring)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _ring(self) -> None:
        self.overdue = time.monotonic() - self._due < _ON_TIME_SECONDS


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel until all have ended: a cancellation is lost now and then, where it meets a time-out inside a library."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_CANCEL_SECONDS)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # so that nobody complains that it was never looked at


def _name(key: bytes) -> bytes:
    return _PREFIX + key.hex().encode()


def _answer(questions: Sequence[_Question] | deque[_Question], found: Found) -> None:
    for question in questions:
        if not question.found.done():
            question.found.set_result(found)


def _pause(failures: int) -> float:
    """Seconds until Redis is tried again: longer each time, and not the same for every process."""
    longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(failures, 10))
    return longest * random.uniform(0.5, 1)  # noqa: S311 -- nothing depends on its being secret
