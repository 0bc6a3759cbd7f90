"""Settling: what is carried out and not on record yet comes into the audit as soon as the database is back."""

import asyncio
from threading import Event, Thread
from typing import Self

import structlog

from app.errors import PresageError
from app.release.changes import Releases

log = structlog.get_logger(__name__)

_EVERY_SECONDS = 2.0
_STOP_SECONDS = 1.0


class Settling:
    """Looks again and again while it is open. Several processes may do so: what is recorded twice is one row.

    On a thread of its own, a daemon: a folder or a database that hangs keeps neither the loop nor the process's end.
    """

    def __init__(self, releases: Releases, every: float = _EVERY_SECONDS) -> None:
        self._releases = releases
        self._every = every
        self._over = Event()
        self._thread = Thread(target=self._run, name="settle-changes", daemon=True)

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await asyncio.to_thread(self._thread.join, _STOP_SECONDS)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._releases.settle()
            except (PresageError, OSError) as error:  # the database is away, or the folder: later, then
                log.debug("changes_not_settled", error=str(error))
            self._over.wait(self._every)
