"""Directory: who may call, as the database had it a moment ago, in memory for every request.

A thread asks the database four times a second for one number, and for everything again when that has changed. While
the database is away, stands still or lacks a migration, the last snapshot stands. No request waits for any of it.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self

import structlog

from app.storage import clients as table
from app.storage.clients import ApiKey, Client, Kind
from app.storage.database import Database

log = structlog.get_logger(__name__)

State = Literal["current", "stale", "never"]

_POLL_SECONDS = 0.25
# For what somebody has changed by hand, without the number.
_REREAD_SECONDS = 30.0
_RETRY_SECONDS = 1.0
# Longer than a healthy database ever takes to answer; one that stands still is found out by this.
_SILENCE_SECONDS = 2.0
_CLEAN_SECONDS = 3600.0
# Revocations outlive their tokens by this, for machines whose clocks are behind.
_MARGIN = timedelta(hours=1)
_ENTER_SECONDS = 1.0
_LEAVE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class KnownClient:
    """A client as a request needs it; tokens issued before `tokens_not_before`, in epoch seconds, are refused."""

    name: str
    kind: Kind
    scopes: frozenset[str]
    plan: str | None
    disabled: bool
    tokens_not_before: float


@dataclass(frozen=True, slots=True)
class KnownKey:
    """An API key as a request needs it; `expires_at` is in epoch seconds, infinite for one that does not expire."""

    hash: str = field(repr=False)
    client: str
    expires_at: float
    revoked: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Clients by name, API keys by id, ids of revoked tokens; no secret, nor the hash of one that can be guessed."""

    clients: Mapping[str, KnownClient] = field(default_factory=dict)
    api_keys: Mapping[str, KnownKey] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()


class Directory:
    """An async context manager: entering starts the thread and waits a second at most for its first snapshot.

    `number` grows whenever `snapshot` is another. Who remembers what a snapshot said reads the number first: it is
    never newer than the snapshot.
    """

    def __init__(
        self,
        database: Database,
        *,
        poll: float = _POLL_SECONDS,
        reread: float = _REREAD_SECONDS,
        clean: float = _CLEAN_SECONDS,
    ) -> None:
        """In seconds: how often it asks for the number, for everything regardless, and deletes what has expired."""
        self.snapshot = Snapshot()
        self.number = 0
        self._database = database
        self._poll, self._reread, self._clean = poll, reread, clean
        self._generation = -1
        self._reread_at = 0.0
        self._clean_at = time.monotonic() + _jittered(clean)
        self._readable: bool | None = None
        self._confirmed: tuple[float, datetime] | None = None
        self._wake = threading.Condition()
        self._asked: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[bool]]] = []
        self._stopping = False
        self._connection: Any = None
        self._thread = threading.Thread(target=self._run, name="directory", daemon=True)

    async def __aenter__(self) -> Self:
        self._thread.start()
        await self.refreshed(_ENTER_SECONDS)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        with self._wake:
            self._wake.notify()
        # A database that stands still keeps the thread, a daemon, for longer than we wait.
        await asyncio.to_thread(self._thread.join, _LEAVE_SECONDS)

    @property
    def state(self) -> State:
        """Whether the snapshot is what the database has now, what it once had, or empty since nothing was ever read."""
        if self._confirmed is None:
            return "never"
        silent = time.monotonic() - self._confirmed[0] > self._poll + _SILENCE_SECONDS
        return "stale" if silent or not self._readable else "current"

    @property
    def confirmed_at(self) -> datetime | None:
        """When the database last said that the snapshot is what it has."""
        return self._confirmed and self._confirmed[1]

    async def refreshed(self, seconds: float = _ENTER_SECONDS) -> bool:
        """Read what the database has from now on; False when that was not possible within so many seconds."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        with self._wake:
            self._asked.append((loop, future))
            self._wake.notify()
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            return False

    def _run(self) -> None:
        while not self._stopping:
            with self._wake:
                asked, self._asked = self._asked, []
            readable = self._refresh()
            for loop, future in asked:
                with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                    loop.call_soon_threadsafe(_resolve, future, readable)
            if readable:
                self._forget()
            with self._wake:
                if not (self._asked or self._stopping):
                    self._wake.wait(self._poll if readable else _jittered(_RETRY_SECONDS))
        self._disconnect()

    def _refresh(self) -> bool:
        """Whether the snapshot is now what the database has."""
        # Asked before the first read and while reads fail: to read would make a file of SQLite, and log each failure.
        if not self._readable and (schema := self._database.schema_state()) not in ("current", "ahead"):
            self._note_failure(schema)
            return False
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 -- whatever it is, the last snapshot stands and we try again
            self._note_failure(type(error).__name__)
            return False
        self._note_success()
        return True

    def _read(self) -> None:
        # The number first: a change that comes in between is read twice, and never missed.
        generation = self._ask_for_generation()
        if generation == self._generation and time.monotonic() < self._reread_at:
            return
        with self._database.reading() as connection:
            clients, keys = table.clients(connection), table.api_keys(connection)
            revoked = table.revoked_tokens(connection)
        snapshot = Snapshot({c.name: _known_client(c) for c in clients}, {k.id: _known_key(k) for k in keys}, revoked)
        if snapshot != self.snapshot:
            self.snapshot = snapshot
            self.number += 1
        self._generation, self._reread_at = generation, time.monotonic() + self._reread

    def _ask_for_generation(self) -> int:
        if self._connection is None:
            self._connection = self._database.poll_connection()
        try:
            return table.generation(self._connection)
        except Exception:
            self._disconnect()  # the next time over another one
            raise

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it is gone either way
                connection.close()

    def _note_success(self) -> None:
        self._confirmed = time.monotonic(), datetime.now(UTC)
        if not self._readable:
            log.info("directory_current", clients=len(self.snapshot.clients), api_keys=len(self.snapshot.api_keys))
        self._readable = True

    def _note_failure(self, reason: str) -> None:
        if self._readable is not False:
            log.warning("directory_unreadable", reason=reason, clients=len(self.snapshot.clients))
        self._readable = False

    def _forget(self) -> None:
        """Now and then, delete revocations of tokens that have expired; other processes do it, too."""
        if time.monotonic() < self._clean_at:
            return
        self._clean_at = time.monotonic() + _jittered(self._clean)
        try:
            with self._database.writing() as connection:
                forgotten = table.forget_revoked_tokens(connection, datetime.now(UTC) - _MARGIN)
        except Exception as error:  # noqa: BLE001 -- whatever the database says, the next time is another
            log.warning("revocations_not_cleaned", error=type(error).__name__)
        else:
            log.debug("revocations_cleaned", forgotten=forgotten)


def find_client(database: Database, name: str) -> tuple[Client, str] | None:
    """A client as it is now, and the hash of its secret. Blocks for a read. Raises StorageUnavailable."""
    with database.reading() as connection:
        return table.find_with_secret(connection, name)


def _known_client(client: Client) -> KnownClient:
    not_before = client.tokens_not_before.timestamp() if client.tokens_not_before else 0.0
    disabled = client.disabled_at is not None
    return KnownClient(client.name, client.kind, client.scopes, client.plan, disabled, not_before)


def _known_key(key: ApiKey) -> KnownKey:
    expires = key.expires_at.timestamp() if key.expires_at else float("inf")
    return KnownKey(key.hash, key.client, expires, key.revoked_at is not None)


def _jittered(seconds: float) -> float:
    """Never the same for two processes."""
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter, not a secret


def _resolve(future: asyncio.Future[bool], value: bool) -> None:  # noqa: FBT001 -- `set_result` has it so
    if not future.done():
        future.set_result(value)
