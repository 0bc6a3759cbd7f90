"""Errands: work that is done in a process of its own, since it may crash, hang, or take all memory.

Orders go to its input and messages come from its output, JSON objects a line: `say` for a step that begins, and in the
end `done` with a result or `refused` with a sentence. Whatever becomes of the process, whoever asked gets an answer
within a time that is known, and nothing is left running.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

from app.errors import OperatorError, PublishRefused
from app.machine import die_with

Say = Callable[[str], None]

# Behind everybody who serves.
_NICENESS = 10
_READ_BYTES = 1 << 16
_MESSAGE_BYTES = 1 << 20
# To take away what it was making.
_LEAVE_SECONDS = 5.0
_HOW = {
    signal.SIGXCPU: "it took more CPU time than it may",
    signal.SIGKILL: "it was killed; there may not be enough memory",
}


def silent(step: str) -> None:
    """Say nothing."""


class Errands:
    """Does one errand after the other, in one process. Open it as a context manager: leaving ends the process."""

    def __init__(self, module: str, environment: Mapping[str, str], seconds: float, *, setting: str) -> None:
        """`module` calls `run_errands`; an errand may take so many seconds, which `setting` sets."""
        self._module, self._environment = module, environment
        self._seconds, self._setting = seconds, setting
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, order: Mapping[str, Any], say: Say) -> Any:
        """What came of it. Raises PublishRefused, also when the process ends, or takes too long."""
        process = self._running()
        deadline = time.monotonic() + self._seconds
        step = "starting"
        try:
            with contextlib.suppress(BrokenPipeError):
                _write(process, order)
            for message in _messages(process, deadline):
                if "done" in message:
                    return message["done"]
                if "refused" in message:
                    raise PublishRefused(str(message["refused"]))
                step = str(message["say"])
                say(step)
        except TimeoutError:
            self.close()
            raise PublishRefused(f"{step}: not done within {self._seconds:g} s ({self._setting})") from None
        except (KeyError, TypeError, ValueError):
            self.close()
            raise PublishRefused(f"{step}: the process said what nobody understands") from None
        raise PublishRefused(f"{step}: {_how_it_ended(self._left(process))}")

    def close(self) -> None:
        """End the process, with all that it has started; the next errand starts another."""
        if self._process is not None:
            self._process.terminate()
            self._left(self._process)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            path = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
            self._process = subprocess.Popen(  # noqa: S603 -- our own code, and no shell
                [sys.executable, "-m", self._module, str(os.getpid())],
                env={**self._environment, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self._process

    def _left(self, process: subprocess.Popen[bytes]) -> int:
        """Its exit code, once all of its session is gone."""
        self._process = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LEAVE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return code


def run_errands(work: Callable[[dict[str, Any], Say], Any]) -> NoReturn:
    """In the process: do the work for each order until nobody orders any more.

    What `work` raises on purpose is the errand's refusal, and so is anything else, by its name.
    """
    die_with(int(sys.argv[1]))
    os.nice(_NICENESS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was being made is taken away
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no message

    def tell(**message: Any) -> None:
        os.write(out, json.dumps(message).encode() + b"\n")

    def say(step: str) -> None:
        tell(say=step)

    for order in sys.stdin:
        try:
            tell(done=work(json.loads(order), say))
        except Exception as error:  # noqa: BLE001 -- an estimator, or a client of somebody else's, may raise anything
            tell(refused=_reason(error))
    sys.exit(0)


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return "it takes more memory than it may (MODELS_MAX_BYTES)"
    return str(error) if isinstance(error, OperatorError) else f"{type(error).__name__}: {error}".partition("\n")[0]


def _write(process: subprocess.Popen[bytes], order: Mapping[str, Any]) -> None:
    assert process.stdin is not None  # noqa: S101 -- it is a pipe
    process.stdin.write(json.dumps(order).encode() + b"\n")
    process.stdin.flush()


def _messages(process: subprocess.Popen[bytes], deadline: float) -> Iterator[dict[str, Any]]:
    """What it says, until its output ends. Raises TimeoutError."""
    assert process.stdout is not None  # noqa: S101 -- it is a pipe
    pipe, pending = process.stdout.fileno(), b""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while True:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        block = os.read(pipe, _READ_BYTES)
        if not block or len(pending) > _MESSAGE_BYTES:
            return
        *lines, pending = (pending + block).split(b"\n")
        yield from map(json.loads, lines)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"the process ended with the exit code {code}"
    number = signal.Signals(-code)
    return _HOW.get(number, f"the process ended with {number.name}")
