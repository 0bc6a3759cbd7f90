"""Work that may block, such as a question to the database, without holding the event loop or the service's end."""

import asyncio
import contextlib
from collections.abc import Callable
from threading import Thread
from typing import Any, TypeVar

from app.errors import StorageUnavailable

T = TypeVar("T")

MOST_SECONDS = 20.0
_RETRY_SECONDS = 5


async def on_thread(work: Callable[[], T], *, seconds: float = MOST_SECONDS) -> T:
    """What `work` returns or raises. Raises StorageUnavailable when it takes longer than `seconds`.

    The thread is a daemon of its own: a server that is frozen in the middle of an answer keeps neither other callers
    waiting, as it would in a shared pool, nor the process from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def resolve(method: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            method(value)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = future.set_result, work()
        except Exception as error:  # noqa: BLE001 -- whoever waits gets it
            outcome = future.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            loop.call_soon_threadsafe(resolve, *outcome)

    Thread(target=run, name="storage-call", daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            return await future
    except TimeoutError:
        raise StorageUnavailable("the database did not answer in time", retry_after=_RETRY_SECONDS) from None
