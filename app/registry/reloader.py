"""Reloader: the two threads of the registry, one that looks at the disk and one that loads."""

import asyncio
import contextlib
import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.25


class Reloader:
    """`look` is called at once, when it is asked for, and four times a second; `work` as long as it says there is more.

    The threads are daemons: a model that hangs while it is loaded must not keep the process from ending.
    """

    def __init__(self, look: Callable[[], None], work: Callable[[], bool]) -> None:
        self._look = look
        self._work = work
        self._stopping = threading.Event()
        self._look_wanted, self._work_wanted = threading.Event(), threading.Event()
        self._asked = self._looked = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._working = threading.Thread(target=self._work_on, name="load-models", daemon=True)

    def start(self) -> None:
        """On the event loop's thread."""
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._look_on, args=(self._loop,), name="watch-models", daemon=True).start()
        self._working.start()

    def work(self) -> None:
        """There is something to load; from any thread."""
        self._work_wanted.set()

    async def looked(self) -> None:
        """Return after a look that began later than this."""
        assert self._loop is not None  # noqa: S101 -- it is started
        self._asked += 1
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((self._asked, future))
        self._look_wanted.set()
        await future

    async def stop(self, seconds: float) -> None:
        """Begin nothing more, and wait so long for what is being loaded."""
        self._stopping.set()
        self._look_wanted.set()
        self._work_wanted.set()
        await asyncio.to_thread(self._working.join, seconds)
        for _, future in self._waiting:
            future.cancel()

    def _look_on(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopping.is_set():
            self._look_wanted.clear()
            asked = self._asked
            try:
                self._look()
            except Exception:
                log.exception("look_failed")
            self._looked = asked
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(self._tell)
            self._look_wanted.wait(_LOOK_SECONDS)

    def _work_on(self) -> None:
        while not self._stopping.is_set():
            self._work_wanted.wait()
            self._work_wanted.clear()
            try:
                while self._work():
                    if self._stopping.is_set():
                        return
            except Exception:
                log.exception("load_failed")

    def _tell(self) -> None:
        for number, future in self._waiting:
            if number <= self._looked and not future.done():
                future.set_result(None)
        self._waiting = [(number, future) for number, future in self._waiting if not future.done()]
