"""PredictionLog: every answer is on record before it leaves, and in the database once, later.

`record` appends to the journal; nothing on the way of a prediction waits for the database. A thread of the drain brings
the journal there, and another keeps the journal itself: forces it to disk, ends old segments, measures how far behind
the database is — also while the drain waits for a database that does not answer.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import structlog

from app.config import StorageSettings
from app.errors import LogUnavailable
from app.storage.database import Database
from app.storage.drain import DatabaseState, Drain
from app.storage.inspection import age
from app.storage.journal import Journal, JournalError
from app.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_STOP_SECONDS = 5.0
_PROBE_SECONDS = 1.0
_MEASURE_SECONDS = 0.1
_SEGMENT_SECONDS = 10.0
# The drain gives way to everybody until so much waits for it, and hurries then until little does.
_MUCH_BYTES, _LITTLE_BYTES = 3 << 20, 1 << 20


class PredictionLog:
    """Open it as an async context manager: entering starts the thread, leaving drains for a bounded while."""

    def __init__(
        self,
        settings: StorageSettings,
        database: Database,
        metrics: Metrics,
        retention_days: Callable[[str], int] = lambda _: 0,
        *,
        processes: int = 1,
    ) -> None:
        """`retention_days` tells for a model's name after how many days its predictions are deleted; 0: never.

        JOURNAL_MAX_BYTES is shared by so many `processes`.
        """
        self.policy = settings.log_policy
        self._metrics = metrics
        self._sync_seconds = settings.journal_sync_ms / 1000
        self._journal = Journal(settings.journal_dir, max_bytes=settings.journal_max_bytes // processes)
        self._drain = Drain(self._journal, database, metrics, retention_days)
        self._failing: str | None = None
        self._probed = 0.0
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="journal", daemon=True)

    async def __aenter__(self) -> Self:
        if self.policy != "off":
            await asyncio.to_thread(self._probe)
            self._keeper.start()
            self._drain.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.policy != "off":
            await asyncio.to_thread(self._stop)

    @property
    def failing(self) -> str | None:
        """Why the journal cannot be written now; None while it can."""
        return self._failing

    @property
    def serving(self) -> bool:
        """Whether a prediction may be answered now."""
        return self.policy != "require" or self._failing is None

    @property
    def pending_bytes(self) -> int:
        """What the database does not have yet."""
        return self._journal.pending

    @property
    def database_state(self) -> DatabaseState:
        """Whether the database takes records."""
        return self._drain.state

    @property
    def dead_letters(self) -> Path:
        """The file of records that no database would take."""
        return self._drain.dead_letters

    def admit(self) -> None:
        """Before work is done for a prediction that could not be recorded: raises LogUnavailable under `require`.

        While the journal fails, one request a second is let through to find out whether it still does.
        """
        if self._failing is None or self.policy != "require":
            return
        now = time.monotonic()
        if now - self._probed < _PROBE_SECONDS:
            raise self._unavailable()
        self._probed = now

    def record(self, frames: bytes, rows: int) -> None:
        """Put an answer's lines on disk, before it leaves. Raises LogUnavailable when the policy says so."""
        try:
            self._journal.append(frames)
            if self._sync_seconds == 0:
                self._journal.sync()
        except JournalError as error:
            self._fail(error)
            if self.policy == "require":
                raise self._unavailable() from None
            self._metrics.log_lost.inc(rows)
        else:
            if self._failing is not None:
                self._recover()
            self._metrics.log_recorded.inc(rows)

    async def flush(self, seconds: float = 1.0) -> bool:
        """Drain what is recorded now; whether the database had it all in time."""
        return self.policy == "off" or await asyncio.to_thread(self._drain.flush, seconds)

    def _unavailable(self) -> LogUnavailable:
        return LogUnavailable(f"predictions cannot be put on record: the journal is {self._failing}", retry_after=1)

    def _fail(self, error: JournalError) -> None:
        self._probed = time.monotonic()
        if self._failing != error.reason:
            self._failing = error.reason
            self._metrics.log_writable.set(0)
            log.error("journal_failing", reason=error.reason, detail=str(error), policy=self.policy)

    def _recover(self) -> None:
        self._failing = None
        self._metrics.log_writable.set(1)
        log.info("journal_recovered")

    def _probe(self) -> None:
        """Learn at start-up whether the journal can be written."""
        try:
            self._journal.append(b"")
            self._metrics.log_writable.set(1)
        except JournalError as error:
            self._fail(error)

    def _keep(self) -> None:
        """The journal's own thread: the drain may wait for the database, and this must not."""
        self._drain.give_way(much_waits=False)
        tick = min(self._sync_seconds or _MEASURE_SECONDS, _MEASURE_SECONDS)
        synced, much_waits = 0.0, False
        while not self._stopping.wait(tick):
            if self._sync_seconds and time.monotonic() - synced >= self._sync_seconds:
                synced = time.monotonic()
                self._sync()
            self._journal.rotate(older_than=_SEGMENT_SECONDS)
            much_waits = self._journal.pending > (_LITTLE_BYTES if much_waits else _MUCH_BYTES)
            self._drain.give_way(much_waits=much_waits)
            self._metrics.log_pending_bytes.set(self._journal.pending)
            self._metrics.log_lag_seconds.set(age(self._journal.oldest()))

    def _sync(self) -> None:
        try:
            self._journal.sync()
        except JournalError as error:
            self._fail(error)

    def _stop(self) -> None:
        """What the drain cannot bring away in its time stays in the journal, for whoever adopts it."""
        self._sync()  # first, in case that somebody has no patience with the rest
        self._drain.stop(_STOP_SECONDS)
        self._stopping.set()
        self._keeper.join()
        self._sync()
        self._journal.rotate()
        self._journal.close()
