"""Watchdog: frees a thread that waits for a server which keeps its connection open and says nothing.

A frozen machine heeds neither its own time-outs nor TCP's, since its kernel goes on acknowledging. What it cannot keep
from us is the end of our own socket: the driver wakes up and reports a lost connection.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, cast

from psycopg2 import extensions

from app.storage.writer import cut


class Watchdog:
    """One thread, started when there is something to watch, that cuts what takes longer than `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._changed = threading.Condition()
        # In the order of their deadlines, since all have the same time.
        self._watched: dict[object, tuple[float, extensions.connection]] = {}
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, connection: extensions.connection) -> Iterator[None]:
        """While the block waits for that connection's server."""
        token = object()
        with self._changed:
            self._watched[token] = (time.monotonic() + self._seconds, connection)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="database-watchdog", daemon=True)
                self._thread.start()
            elif len(self._watched) == 1:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._watched.pop(token, None)

    def close(self) -> None:
        """End the thread; the next block starts another."""
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        # Cutting under the lock: a block cannot end, and its connection be closed, while we hold it.
        with self._changed:
            while self._thread is threading.current_thread():
                token, (deadline, connection) = next(iter(self._watched.items()), (None, (None, None)))
                if deadline is None:
                    self._changed.wait()
                elif (left := deadline - time.monotonic()) > 0:
                    self._changed.wait(left)
                else:
                    del self._watched[token]
                    cut(connection)


def watched(watchdog: Watchdog) -> dict[str, Any]:
    """What `psycopg2.connect` needs to make a connection whose every wait is watched."""
    return {"connection_factory": partial(_Connection, watchdog=watchdog), "cursor_factory": _Cursor}


class _Connection(extensions.connection):
    def __init__(self, dsn: str, *, watchdog: Watchdog) -> None:
        super().__init__(dsn)
        self.watchdog = watchdog

    def commit(self) -> None:
        with self.watchdog.over(self):
            super().commit()

    def rollback(self) -> None:
        with self.watchdog.over(self):
            super().rollback()


class _Cursor(extensions.cursor):
    """One with a name fetches from the server, and closing it asks the server too."""

    def execute(self, *args: Any) -> None:
        with self._watch():
            super().execute(*args)

    def executemany(self, *args: Any) -> None:
        with self._watch():
            super().executemany(*args)

    def fetchone(self) -> tuple[Any, ...] | None:
        with self._watch():
            return super().fetchone()

    def fetchmany(self, *args: Any) -> list[tuple[Any, ...]]:
        with self._watch():
            return super().fetchmany(*args)

    def fetchall(self) -> list[tuple[Any, ...]]:
        with self._watch():
            return super().fetchall()

    def close(self) -> None:
        with self._watch():
            super().close()

    def _watch(self) -> AbstractContextManager[None]:
        connection = cast("_Connection", self.connection)
        return connection.watchdog.over(connection)
