"""RowCache: the cache of one version, as a request uses it: what is known, what others are computing, and the rest.

Rows that are alike and asked at the same time are computed once. Whoever came first computes them; the others wait, and
ask for themselves should nothing come of it, whatever became of the first.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Literal, cast, get_args

from app.errors import FieldError
from app.inference.entries import Entries, Entry
from app.inference.execution import Outcome
from app.inference.memory_cache import MemoryCache
from app.inference.shared_cache import SharedCache
from app.pipelines.base import Prediction, Row
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.registry.loader import LoadedModel

# From the positions of rows in a request to their outcomes.
Compute = Callable[[Sequence[int]], Awaitable[list[Outcome]]]

# So many rows are gone through before others have the event loop; more of them get their keys on a thread.
_AT_ONCE = 512
# A request does not wait for one that is larger, unless that one is small, too.
_SMALL = 64

_Kind = Literal["hit_memory", "hit_redis", "joined", "miss"]
_Answers = dict[bytes, tuple[Outcome, _Kind]]


class _Flight:
    """Rows that one request has set out to answer, for others to wait for; `found` has those that it could."""

    __slots__ = ("done", "found", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.found: dict[bytes, Entry] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class RowCache:
    """The cache of one version of a model. Only for the event loop's thread."""

    def __init__(
        self,
        model: "LoadedModel",
        ttl_seconds: float,
        memory: MemoryCache,
        shared: SharedCache | None,
        metrics: Metrics,
    ) -> None:
        self._entries = Entries(model)
        self._ttl_seconds = ttl_seconds
        self._memory = memory
        self._shared = shared
        self._flights: dict[bytes, _Flight] = {}
        labels = model.name, str(model.version)
        self._invalid = metrics.cache_invalid.labels(*labels).inc
        self._counts = {kind: metrics.cache_rows.labels(*labels, kind).inc for kind in get_args(_Kind)}

    @property
    def is_shared(self) -> bool:
        """Whether Redis is asked, too."""
        return self._shared is not None

    async def answer(
        self, rows: Sequence[Row], subject: str, compute: Compute, deadline: float = inf
    ) -> tuple[list[Outcome], list[bool]]:
        """Outcomes in order, and which of them the model was not asked for.

        `subject` is who asks. `compute` is given the positions of rows that nothing is known of; what it raises is
        raised. Nobody is waited for beyond the `deadline`, by `time.perf_counter`.
        """
        keys = await self._keys(rows, subject)
        outcomes: list[Outcome | None] = [None] * len(rows)
        missing: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            if (entry := self._memory.get(key)) is None:
                missing.setdefault(key, position)
            else:
                outcomes[position] = self._entries.unpack(entry)
            await _breathe(position)
        if not missing:
            self._counts["hit_memory"](len(rows))
            return cast("list[Outcome]", outcomes), [True] * len(rows)
        answers = await self._find(missing, compute, deadline)
        kinds = await self._fill(outcomes, keys, answers, missing)
        for kind, count in Counter(kinds).items():
            self._counts[kind](count)
        return cast("list[Outcome]", outcomes), [kind != "miss" for kind in kinds]

    async def _keys(self, rows: Sequence[Row], subject: str) -> list[bytes]:
        if len(rows) <= _AT_ONCE:
            return self._entries.keys(rows, subject)
        return await asyncio.to_thread(self._entries.keys, rows, subject)

    @staticmethod
    async def _fill(
        outcomes: list[Outcome | None], keys: Sequence[bytes], answers: _Answers, first: dict[bytes, int]
    ) -> list[_Kind]:
        """Put answers where there are none yet, and say for each row where its answer is from."""
        kinds: list[_Kind] = ["hit_memory"] * len(keys)
        for position, key in enumerate(keys):
            if outcomes[position] is None:
                outcome, kind = answers[key]
                if position != first[key]:
                    outcome, kind = _copy(outcome), "joined"
                outcomes[position], kinds[position] = outcome, kind
            await _breathe(position)
        return kinds

    async def _find(self, missing: dict[bytes, int], compute: Compute, deadline: float) -> _Answers:
        """Answer what memory does not have; what others have set out to comes last, so that no two wait for another."""
        flight = _Flight(len(missing))
        joined: dict[bytes, _Flight] = {}
        for key in missing:
            other = self._flights.setdefault(key, flight)
            if other is not flight and other.size <= max(_SMALL, flight.size):
                joined[key] = other
        led = {key: position for key, position in missing.items() if key not in joined}
        try:
            answers = await self._lead(flight, led, compute) if led else {}
        finally:
            for key in led:
                if self._flights.get(key) is flight:
                    del self._flights[key]
            flight.done.set_result(None)
        if joined:
            left = None if deadline == inf else max(0.0, deadline - time.perf_counter())
            await asyncio.wait({other.done for other in joined.values()}, timeout=left)
            found = {key: entry for key, other in joined.items() if (entry := other.found.get(key)) is not None}
            answers.update({key: (self._entries.unpack(entry), "joined") for key, entry in found.items()})
            alone = {key: missing[key] for key in joined if key not in found}
            answers.update(await self._compute(alone, compute, {}))
        return answers

    async def _lead(self, flight: _Flight, missing: dict[bytes, int], compute: Compute) -> _Answers:
        found = await self._ask_redis(list(missing))
        flight.found.update(found)
        answers: _Answers = {key: (self._entries.unpack(entry), "hit_redis") for key, entry in found.items()}
        unknown = {key: position for key, position in missing.items() if key not in found}
        answers.update(await self._compute(unknown, compute, flight.found))
        return answers

    async def _ask_redis(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """What Redis has in time, checked, and put into memory for the rest of its time."""
        found: dict[bytes, Entry] = {}
        if self._shared is None:
            return found
        values = await self._shared.get(keys)
        now_ms = time.time() * 1000
        for key in keys:
            if (raw := values.get(key)) is None:
                continue
            decoded = self._entries.decode(key, raw)
            if decoded is None:
                self._invalid()
                continue
            entry, made_ms = decoded
            # A clock elsewhere may be ahead of ours; Redis forgets by its own.
            seconds = self._ttl_seconds - max(0.0, now_ms - made_ms) / 1000
            if seconds > 0:
                found[key] = entry
                self._memory.put(key, entry, self._entries.bytes, seconds)
        return found

    async def _compute(self, missing: dict[bytes, int], compute: Compute, found: dict[bytes, Entry]) -> _Answers:
        """Have rows computed, and keep what came of it; `found` gets the entries."""
        answers: _Answers = {}
        if not missing:
            return answers
        outcomes = await compute(list(missing.values()))
        now_ms = int(time.time() * 1000)
        for position, (key, outcome) in enumerate(zip(missing, outcomes, strict=True)):
            answers[key] = (outcome, "miss")
            entry = self._entries.pack(outcome) if isinstance(outcome, Prediction) else None
            if entry is not None:
                found[key] = entry
                self._memory.put(key, entry, self._entries.bytes, self._ttl_seconds)
                if self._shared is not None:
                    self._shared.put(key, self._entries.encode(key, entry, now_ms), int(self._ttl_seconds * 1000))
            await _breathe(position)
        return answers


def _copy(outcome: Outcome) -> Outcome:
    if isinstance(outcome, FieldError) or outcome.probabilities is None:
        return outcome
    return Prediction(outcome.value, dict(outcome.probabilities))


async def _breathe(position: int) -> None:
    """Let others have the event loop now and then."""
    if position % _AT_ONCE == _AT_ONCE - 1:
        await asyncio.sleep(0)
