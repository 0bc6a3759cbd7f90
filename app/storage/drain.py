"""Drain: the thread that brings the journal into the database.

It takes what the journal holds, writes it in bulk, and acknowledges only what was committed. While the database is away
the records stay, and it tries again with jittered pauses until it has caught up. In between it adopts what dead
processes have left, and deletes what is past its age.
"""

import contextlib
import fcntl
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import structlog

from app.storage.database import Database
from app.storage.journal import Journal, Segment
from app.storage.lines import payloads, unchecked_payloads, whole_lines
from app.storage.retention import Deleted, expire
from app.storage.writer import WRITERS, Connection, cut, write_isolating
from app.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

DatabaseState = Literal["unknown", "up", "down", "behind"]
DEAD_LETTERS = "dead-letters.jsonl"

_TICK_SECONDS = 0.05
_ADOPT_SECONDS = 2.0
_SHORTEST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
# A database that takes longer than this for one block is as good as away.
_STALLED_SECONDS = 5.0
# Some ten thousand records: half as many cost PostgreSQL a fifth more a row, twice as many no less.
_BLOCK_BYTES = 4 << 20
_FIRST_EXPIRY_SECONDS = 5.0
_EXPIRY_SECONDS = 3600.0


class Drain:
    """One thread and its own connection. `start` it once, and `stop` it once."""

    def __init__(
        self, journal: Journal, database: Database, metrics: Metrics, retention_days: Callable[[str], int]
    ) -> None:
        self._journal = journal
        self._database = database
        self._metrics = metrics
        self._retention_days = retention_days
        self._state: DatabaseState = "unknown"
        self._writing_since: float | None = None
        self._wake = threading.Condition()
        self._flushes: list[threading.Event] = []
        self._stopping = threading.Event()
        self._stop_at: float | None = None
        self._next_adoption = 0.0
        self._expiry: Iterator[Deleted] | None = None
        self._next_expiry = time.monotonic() + _FIRST_EXPIRY_SECONDS
        self._connection: Connection | None = None
        self._failures = 0
        self._hurries = True  # as threads are when they begin
        self._thread = threading.Thread(target=self._run, name="log-drain", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End: what can be drained in that time is drained, and the rest is somebody else's, later."""
        self._stop_at = time.monotonic() + seconds
        self._stopping.set()
        self.give_way(much_waits=True)  # no longer
        with self._wake:
            self._wake.notify()
        self._thread.join(seconds + 0.5)
        if self._thread.is_alive():
            cut(self._connection)
            self._thread.join(seconds)

    def give_way(self, *, much_waits: bool) -> None:
        """Let every other thread of the machine go first, unless much waits.

        A prediction that comes while this thread has the CPU would wait for milliseconds. Only Linux can do that for
        one thread, and where a sandbox forbids it, it stays as it is.
        """
        thread = self._thread.native_id
        if thread is None or much_waits == self._hurries:
            return
        self._hurries = much_waits
        with contextlib.suppress(AttributeError, OSError):
            policy = os.SCHED_OTHER if much_waits else os.SCHED_IDLE
            os.sched_setscheduler(thread, policy, os.sched_param(0))

    def flush(self, seconds: float) -> bool:
        """Drain what is recorded now; whether the database had it all in that time."""
        done = threading.Event()
        self.give_way(much_waits=True)  # somebody waits for it
        with self._wake:
            self._flushes.append(done)
            self._wake.notify()
        return done.wait(seconds)

    @property
    def state(self) -> DatabaseState:
        """How the database took what it was last given, or does not take what it is given now."""
        since = self._writing_since
        stalled = since is not None and time.monotonic() - since > _STALLED_SECONDS
        return "down" if stalled else self._state

    @property
    def dead_letters(self) -> Path:
        """The file of records that no database would take."""
        return self._journal.folder / DEAD_LETTERS

    def _run(self) -> None:
        self._look_at_database()
        drained = False
        while not self._ended(drained=drained):
            self._adopt()
            with self._wake:
                flushes, self._flushes = self._flushes, []
            drained = self._drain()
            if drained:
                self._expire()
            with self._wake:
                if not drained:
                    self._flushes += flushes
                elif not self._flushes and self._stop_at is None:
                    self._wake.wait(_TICK_SECONDS)
            if drained:
                for done in flushes:
                    done.set()
            else:
                self._pause()
        self._disconnect()

    def _ended(self, *, drained: bool) -> bool:
        """When asked to: with everything drained, without time, or without a database that would take more."""
        return self._stop_at is not None and (drained or self._failures > 0 or time.monotonic() > self._stop_at)

    def _pause(self) -> None:
        """After a failure: longer each time, and never the same for two processes; the stop cuts it short."""
        longest = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2 ** min(self._failures, 10))
        self._stopping.wait(longest * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, not a secret

    def _adopt(self) -> None:
        """Now and then, look for what dead processes have left."""
        now = time.monotonic()
        if now < self._next_adoption:
            return
        self._next_adoption = now + _ADOPT_SECONDS
        adopted = self._journal.adopt()
        if adopted:
            log.info("segments_adopted", segments=adopted, bytes=self._journal.pending)

    def _expire(self) -> None:
        """Now and then, delete what is past its age: one step at a time, and draining goes on in between."""
        if self._expiry is None:
            if time.monotonic() < self._next_expiry:
                return
            self._expiry = expire(self._database, self._retention_days)
        try:
            deleted = next(self._expiry, None)
        except Exception as error:  # noqa: BLE001 -- whatever the database says, the next time is another
            log.warning("retention_failed", error=type(error).__name__)
            deleted = None
        if deleted is None:
            self._expiry = None
            self._next_expiry = time.monotonic() + _EXPIRY_SECONDS
        else:
            self._metrics.log_expired.inc(deleted.predictions)

    def _drain(self) -> bool:
        """Bring everything that is recorded now into the database; whether that succeeded."""
        try:
            for segment in self._journal.segments():
                goal = segment.size
                while segment.drained < goal:
                    if self._stop_at is not None and time.monotonic() > self._stop_at:
                        return False
                    self._drain_block(segment)
        except Exception as error:  # noqa: BLE001 -- whatever a driver raises, the records stay and we try again
            self._note_failure(error)
            return False
        return True

    def _drain_block(self, segment: Segment) -> None:
        appended = self._journal.take(segment, _BLOCK_BYTES)
        if appended:
            records, count = unchecked_payloads(appended), sum(map(len, appended))
        else:
            records, count = self._read(segment)
        if records:
            write = WRITERS[self._database.dialect]
            self._writing_since = time.monotonic()
            self._note_success(write_isolating(write, self._connect(), records, self._bury))
        self._journal.acknowledge(segment, count)

    def _read(self, segment: Segment) -> tuple[list[bytes], int]:
        """Records from the file, from the first that is not drained, and their bytes; damaged ones are buried."""
        records = []
        lines, count = self._read_lines(segment)
        for line, payload in payloads(lines):
            if payload is None:
                self._bury(line, "the record is damaged")
            else:
                records.append(payload)
        return records, count

    def _read_lines(self, segment: Segment) -> tuple[list[bytes], int]:
        """Whole lines; one may be longer than a block."""
        unread, size = segment.unread, _BLOCK_BYTES
        while True:
            block = segment.read(min(size, unread))
            lines, count = whole_lines(block, last=len(block) == unread)
            if count or len(block) == unread:
                return lines, count
            size *= 4

    def _connect(self) -> Connection:
        if self._connection is None:
            connection: Connection = self._database.writer_connection()
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except Exception as error:  # noqa: BLE001 -- it is gone either way
                log.debug("connection_close_failed", error=type(error).__name__)

    def _note_success(self, rows: int) -> None:
        if self._state != "up":
            log.info("log_database_up", pending_bytes=self._journal.pending)
        self._state = "up"
        self._failures = 0
        self._writing_since = None
        self._metrics.log_database_up.set(1)
        self._metrics.log_drained.inc(rows)

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        self._writing_since = None
        self._disconnect()
        state: DatabaseState = "behind" if self._database.schema_state() in ("behind", "absent") else "down"
        if self._state != state:
            log.warning("log_database_unavailable", state=state, error=type(error).__name__)
        self._state = state
        self._metrics.log_database_up.set(0)

    def _look_at_database(self) -> None:
        """Once, before there is anything to drain: so that an absent database is known before it is needed."""
        state = self._database.schema_state()
        self._state = "up" if state == "current" else "down" if state == "unreachable" else "behind"
        self._metrics.log_database_up.set(self._state == "up")
        if self._state != "up":
            log.warning("log_database_unavailable", state=self._state, schema=state)

    def _bury(self, record: bytes, reason: str) -> None:
        """What no database would take goes to a file of its own, for a person."""
        letter = json.dumps({"reason": reason, "record": record.decode("utf-8", "replace")})
        with self.dead_letters.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(letter + "\n")
        self._metrics.log_dead_letters.inc()
        log.error("record_dead_lettered", reason=reason)
