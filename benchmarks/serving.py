"""A server under test: started on its core, waited for, and checked against scikit-learn before anything is timed."""

import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.environments import PLACE
from benchmarks.load import write_script, wrk
from benchmarks.open_loop import http_request
from benchmarks.processes import LOAD_CORE, Group, ServerEnded, pinned
from benchmarks.reference import Reference
from benchmarks.system import Place, System
from tests.support.server import ROOT, clean_environment, free_port

_READY_SECONDS = 90
_CHECKED = 24
_AT_ONCE = 12
_ANSWER_SECONDS = 10
_DRAIN_SECONDS = 5
_FEW_AND_MANY = (4, 64)


class WrongAnswer(Exception):
    """A server does not answer what scikit-learn answers."""


class NotReady(Exception):
    """A server did not answer in time."""


# What takes one server out of a round, and not the run.
FAILURES = (ServerEnded, WrongAnswer, NotReady, click.ClickException, subprocess.SubprocessError, OSError)


@dataclass(frozen=True)
class Serving:
    """A server that is ready and answers rightly."""

    system: System
    reference: Reference
    port: int
    group: Group
    folder: Path

    def closed_loop(self, seconds: int, connections: int) -> dict[str, float]:
        """wrk, after a second of warm-up: `rate`, `p50` and `p99` in milliseconds."""
        bodies = [self.system.content(item).decode() for item in self.reference.items]
        return self.wrk(self.system.path, bodies, seconds, connections)

    def wrk(self, path: str, bodies: Sequence[str], seconds: int, connections: int) -> dict[str, float]:
        """The same with other bodies."""
        script = write_script(self.folder / "post.lua", bodies, self.system.headers)
        url = f"http://127.0.0.1:{self.port}{path}"
        wrk(url, script, 1, connections=connections)
        return wrk(url, script, seconds, connections=connections)

    def maximum(self, seconds: int) -> float:
        """The most 200s a second that a closed loop gets, with few connections or with many; refusals do not count."""
        bodies = [self.system.content(item).decode() for item in self.reference.items]
        script = write_script(self.folder / "post.lua", bodies, self.system.headers)
        url = f"http://127.0.0.1:{self.port}{self.system.path}"
        wrk(url, script, 1, connections=1)
        return max(wrk(url, script, seconds, connections=n, refusals=True)["rate"] for n in _FEW_AND_MANY)

    def open_loop(self, rate: float, seconds: float, connections: int) -> Mapping[str, Any]:
        """Requests that leave when they are due, from a process of its own on the load's core."""
        system = self.system
        contents = [
            http_request(self.port, system.path, system.content(item), system.headers) for item in self.reference.items
        ]
        order = {"port": self.port, "requests": [content.decode() for content in contents], "rate": rate}
        order |= {"seconds": seconds, "connections": connections, "drain": _DRAIN_SECONDS}
        ran = subprocess.run(
            ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "benchmarks.open_loop"],
            cwd=ROOT,
            env=clean_environment(),
            input=json.dumps(order),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=seconds + _DRAIN_SECONDS + 30,
        )
        found: Mapping[str, Any] = json.loads(ran.stdout)
        return found


@contextmanager
def serving(system: System, python: Path, reference: Reference) -> Iterator[Serving]:
    """Start, wait and check. Raises one of FAILURES, with the reason."""
    with tempfile.TemporaryDirectory(dir=PLACE, prefix=f"{system.name}-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        place = Place(python, reference.models, reference.artefact, free_port(), folder)
        log = PLACE / "logs" / f"{system.name}-{system.task}.log"
        with pinned(system.command(place), system.variables(place), folder, log) as group:
            running = Serving(system, reference, place.port, group, folder)
            _wait(running)
            _check(running)
            yield running


def _wait(running: Serving) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    status = 0
    while time.monotonic() < deadline:
        running.group.check()
        try:
            status, _ = _ask(running, running.reference.items[0])
        except (OSError, http.client.HTTPException):
            status = 0
        if status == 200:
            return
        time.sleep(0.1)
    said = f"its last answer is a {status}" if status else "it does not listen"
    raise NotReady(f"not ready within {_READY_SECONDS} s: {said}; {running.group.last_words()}")


def _check(running: Serving) -> None:
    """Ask several at once, so that what shares a batch is checked, too."""
    reference, system = running.reference, running.system
    chosen = range(0, len(reference.items), max(1, len(reference.items) // _CHECKED))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(lambda i: _ask(running, reference.items[i]), chosen))
    for i, (status, content) in zip(chosen, answers, strict=True):
        if status != 200:
            raise WrongAnswer(f"it answers {status}: {content[:200]!r}")
        found = system.answer(json.loads(content))
        expected = system.body(reference.items[i]) if system.name == "echo" else reference.answers[i]
        if found != expected:
            raise WrongAnswer(f"it answers {found!r} where scikit-learn answers {expected!r}")


def _ask(running: Serving, item: Any) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=_ANSWER_SECONDS)
    try:
        headers = {"Content-Type": "application/json", **running.system.headers}
        connection.request("POST", running.system.path, running.system.content(item), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
