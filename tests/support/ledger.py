"""A ledger of what callers were told under load, to compare with what the database has."""

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol
from uuid import UUID

import httpx2
import psycopg2

# Between two requests of a caller: there are always some on their way, and still some time for everybody else.
_PAUSE_SECONDS = 0.004


class Addressed(Protocol):
    """What has callers: a server, or what stands in front of several."""

    @property
    def url(self) -> str:
        """Where it is reached."""


class Ledger:
    """What callers were told: the ids of answers, and how many requests ended otherwise."""

    def __init__(self) -> None:
        self.answered: list[UUID] = []
        self.statuses: Counter[int | str] = Counter()
        self.told: Counter[tuple[int, Any]] = Counter()  # version and prediction
        self.slowest = 0.0

    def assert_matches(self, url: str, *, beside: int = 0) -> None:
        """Every answer is there once. A row whose answer got lost on its way is no error; one without a request is.

        `beside`: so many rows were asked for by others.
        """
        rows = rows_of(url)
        assert len(rows) == len(set(rows))
        assert set(self.answered) <= set(rows)
        assert len(rows) - len(self.answered) - beside <= self.statuses["broken"], (len(rows), self.statuses)


@contextmanager
def load(server: Addressed, callers: int = 4, pause: float = _PAUSE_SECONDS) -> Iterator[Ledger]:
    """Callers that ask one after the other, with a `pause` in seconds, until the block ends."""
    ledger = Ledger()
    stop = threading.Event()
    threads = [threading.Thread(target=_call, args=(server.url, ledger, stop, pause)) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield ledger
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _call(url: str, ledger: Ledger, stop: threading.Event, pause: float) -> None:
    with httpx2.Client(base_url=url, timeout=20, verify=False) as client:
        while not stop.is_set():
            started = time.perf_counter()
            try:
                answer = client.post("/v2/predict", json={"inputs": {"x": 3}})
            except httpx2.ConnectError:  # nobody listens: it was not sent
                ledger.statuses["refused"] += 1
                stop.wait(0.02)
                continue
            except httpx2.TransportError:
                ledger.statuses["broken"] += 1
                stop.wait(0.02)
                continue
            ledger.slowest = max(ledger.slowest, time.perf_counter() - started)
            ledger.statuses[answer.status_code] += 1
            if answer.status_code == 200:
                body = answer.json()
                ledger.told[body["version"], body["prediction"]] += 1
                ledger.answered.append(UUID(body["id"]))
            stop.wait(pause)


def rows_of(url: str) -> list[UUID]:
    """The ids of all predictions that the database has."""
    if url.startswith("sqlite:///"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
            return [UUID(row[0]) for row in database.execute("select id from predictions")]
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("select id::text from predictions")
        return [UUID(row[0]) for row in cursor.fetchall()]


def answers(ledger: Ledger, more: int) -> None:
    """Wait for that many further answers."""
    goal = len(ledger.answered) + more
    deadline = time.monotonic() + 30
    while len(ledger.answered) < goal:
        assert time.monotonic() < deadline, ledger.statuses
        time.sleep(0.01)
