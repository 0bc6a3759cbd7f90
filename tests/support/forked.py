"""Workers with nothing but metrics: real processes, forked by a supervisor that does what it is told, line by line.

Run as a module it is that supervisor; `Service` talks to it.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from prometheus_client.parser import text_string_to_metric_families

from app.board import Board
from app.telemetry.bulletins import Bulletins
from app.telemetry.metrics import Metrics
from app.telemetry.shared import Snapshots
from tests.support.server import ROOT, clean_environment

Samples = dict[str, float]


@dataclass
class Service:
    """The supervisor, seen from a test."""

    process: subprocess.Popen[str]

    def tell(self, what: str, slot: int, **more: Any) -> Any:
        """Have it, or the worker in that slot, do something; its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"what": what, "slot": slot, **more}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def scrape(self, slot: int) -> Samples:
        """What the worker in that slot shows of all."""
        return samples(self.tell("scrape", slot)["text"])


def samples(text: str) -> Samples:
    """The values by name and labels, as Prometheus reads them; fails where a name comes twice."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name + json.dumps(sample.labels, sort_keys=True) * bool(sample.labels)
            assert key not in found
            found[key] = sample.value
    return found


@contextmanager
def forked_service(slots: int) -> Iterator[Service]:
    """A supervisor with that many slots and no workers yet."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.support.forked", str(slots)],
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Service(process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@dataclass
class _Supervisor:
    board: Board
    bulletins: Bulletins
    metrics: Metrics
    workers: dict[int, tuple[int, TextIO, TextIO]] = field(default_factory=dict)

    def do(self, slot: int, what: str, **more: Any) -> Any:
        match what:
            case "start":
                return self._start(slot)
            case "kill":
                pid, *_ = self.workers.pop(slot)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                self.board.clear(slot)
            case "signal":
                os.kill(self.workers[slot][0], more["number"])
            case "sequence":
                return self.bulletins.slots[slot].sequence
            case "note_restart":
                self.board.note_restart(0, **more)
            case _:
                return self._pass_on(slot, what, more)
        return None

    def _start(self, slot: int) -> Any:
        (down, orders), (answers, up) = os.pipe(), os.pipe()
        pid = os.fork()
        if not pid:
            self.board.enter(slot)
            self.board.note_worker_serving()
            asyncio.run(_work(Snapshots(self.bulletins, self.board, self.metrics), os.fdopen(down), os.fdopen(up, "w")))
            os._exit(0)
        os.close(down)
        os.close(up)
        self.workers[slot] = (pid, os.fdopen(orders, "w"), os.fdopen(answers))
        return json.loads(self.workers[slot][2].readline())

    def _pass_on(self, slot: int, what: str, more: Any) -> Any:
        pid, orders, answers = self.workers[slot]
        print(json.dumps({"what": what, **more}), file=orders, flush=True)
        answer = json.loads(answers.readline())
        if what == "leave":
            os.waitpid(pid, 0)
            self.board.clear(slot)
            del self.workers[slot]
        return answer


async def _work(snapshots: Snapshots, orders: TextIO, answers: TextIO) -> None:
    """Obey until told to leave; between orders the loop turns as that of a service does."""
    metrics, busy = snapshots.metrics, set[asyncio.Task[None]]()
    async with snapshots:
        print("true", file=answers, flush=True)
        # One line at a time is under way, so the reader's buffer never holds another.
        while (order := json.loads(await asyncio.to_thread(orders.readline)))["what"] != "leave":
            answer: Any = None
            match order:
                case {"what": "count", "times": times}:
                    for _ in range(times):
                        count(metrics)
                case {"what": "keep_counting"}:
                    busy.add(asyncio.create_task(_keep_counting(metrics)))
                case {"what": "set", "gauge": gauge, "value": value}:
                    found = getattr(metrics, gauge)
                    (found.labels("iris", "1") if gauge == "waiting" else found).set(value)
                case {"what": "scrape"}:
                    began = time.monotonic()
                    await snapshots.refresh()
                    seconds = time.monotonic() - began
                    answer = {"text": snapshots.exposition().decode(), "seconds": seconds}
            print(json.dumps(answer), file=answers, flush=True)
        for task in busy:
            task.cancel()
    print("true", file=answers, flush=True)


async def _keep_counting(metrics: Metrics) -> None:
    while True:
        count(metrics)
        await asyncio.sleep(0)


def count(metrics: Metrics) -> None:
    """One request, as a plain counter, a histogram and a counter of the library's have it."""
    metrics.record_hot("/predict", 200, 0.003)
    metrics.log_recorded.inc()


def _main() -> None:
    board = Board(int(sys.argv[1]))
    supervisor = _Supervisor(board, Bulletins(board.slots), Metrics())
    for _ in range(1000):
        count(supervisor.metrics)  # before any fork, as a template might
    for line in sys.stdin:
        sys.stdout.write(json.dumps(supervisor.do(**json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
