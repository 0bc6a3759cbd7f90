"""Work on a thread: its result, its error, or an end to the waiting."""

import asyncio
import threading
import time

import pytest

from app.api.offload import on_thread
from app.errors import StorageUnavailable


def test_what_the_work_returns_and_raises_comes_back() -> None:
    """On another thread than the loop's, which turns meanwhile."""

    def work() -> threading.Thread:
        time.sleep(0.05)
        return threading.current_thread()

    async def ask() -> tuple[threading.Thread, int]:
        turns = 0
        working = asyncio.create_task(on_thread(work))
        while not working.done():
            turns += 1
            await asyncio.sleep(0.001)
        return await working, turns

    thread, turns = asyncio.run(ask())
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert turns > 5

    def fail() -> None:
        raise StorageUnavailable("planted")

    with pytest.raises(StorageUnavailable, match="planted"):
        asyncio.run(on_thread(fail))


def test_who_waits_too_long_is_told_and_the_process_may_end() -> None:
    """Though the thread is still at work, and finishes after the loop has ended."""
    release = threading.Event()
    started = time.perf_counter()
    with pytest.raises(StorageUnavailable) as caught:
        asyncio.run(on_thread(lambda: release.wait(20), seconds=0.05))
    assert time.perf_counter() - started < 5
    assert caught.value.retry_after
    release.set()
    for thread in threading.enumerate():
        if thread.name == "storage-call":
            thread.join(5)
