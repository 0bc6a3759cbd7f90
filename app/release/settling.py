"""Settling: what is carried out and not on record yet comes into the audit as soon as the database is back."""

import asyncio
import contextlib
from typing import Self

import structlog

from app.errors import PresageError
from app.release.changes import Releases

log = structlog.get_logger(__name__)

_EVERY_SECONDS = 2.0


class Settling:
    """Looks again and again while it is open. Several processes may do so: what is recorded twice is one row."""

    def __init__(self, releases: Releases, every: float = _EVERY_SECONDS) -> None:
        self._releases = releases
        self._every = every
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._releases.settle)
            except (PresageError, OSError) as error:  # the database is away, or the folder: later, then
                log.debug("changes_not_settled", error=str(error))
            await asyncio.sleep(self._every)
