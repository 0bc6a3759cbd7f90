"""What Unix has for a process and its children, in the words that supervisor and template use."""

import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NoReturn, TextIO

from app.machine import die_with

# `exit` of a process that a signal ended, as a shell tells it.
_SIGNALLED = 128


def fork(work: Callable[[], int]) -> int:
    """A child that does the work and ends with the code that it returns; the child's pid.

    No exit handlers of ours are run there, and nothing above in the stack: it is not ours any more.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    parent = os.getpid()
    with warnings.catch_warnings():
        # Python 3.12 and later say so of any thread, also of a library's own that knows what a fork is.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _be_a_child(parent, work)
    return pid


def _be_a_child(parent: int, work: Callable[[], int]) -> NoReturn:
    code = 1
    try:
        die_with(parent)
        code = work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 -- it is the end of this process, and the last chance to say why
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def hold(numbers: AbstractSet[signal.Signals]) -> None:
    """Keep these signals for `wait`; a process begins with those that its parent held."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def release(numbers: AbstractSet[signal.Signals]) -> None:
    """Let these signals do what they do."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def wait(numbers: AbstractSet[signal.Signals], seconds: float) -> int | None:
    """The next of the signals that are held, or None after so many seconds."""
    found = signal.sigtimedwait(numbers, max(0.0, seconds))
    return found.si_signo if found else None


def ended_children() -> Iterator[tuple[int, int]]:
    """Pid and exit code of each child that has ended; 128 and the signal's number where one ended it."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        yield pid, code if code >= 0 else _SIGNALLED - code


def tell(pid: int, number: int) -> None:
    """Send a signal; a child that we have not waited for keeps its pid, so nobody else gets it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def anonymous_file() -> TextIO:
    """One without a name, in memory where that exists."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("presage"), "w+", encoding="utf-8", errors="replace")  # noqa: PTH123
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")


def own_bytes(pid: int) -> int:
    """Memory that this process has for itself, beside what it shares with those it was forked from; 0 if unknown."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


class Patience:
    """Pauses between attempts: none before the first, then longer each time, and short again after a good while."""

    def __init__(self, shortest: float, longest: float, good_seconds: float) -> None:
        self._shortest, self._longest, self._good = shortest, longest, good_seconds
        self._failures = 0
        self._since = time.monotonic()
        self.until = 0.0

    def began(self) -> None:
        """An attempt began."""
        self._since = time.monotonic()

    def failed(self) -> float:
        """It failed; how many seconds the next has to wait."""
        now = time.monotonic()
        if now - self._since > self._good:
            self._failures = 0
        pause = min(self._longest, self._shortest * 2 ** (self._failures - 1)) if self._failures else 0.0
        self._failures += 1
        self.until = now + pause
        return pause

    @property
    def over(self) -> bool:
        """Whether it may be tried again."""
        return time.monotonic() >= self.until
