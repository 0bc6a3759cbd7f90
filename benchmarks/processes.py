"""A server as a group of processes on one core: started, waited for, weighed, and ended whatever happens.

Some servers start workers that lead sessions of their own, so a process group is not enough: every process of a server
is known by a mark in its environment, or by its ancestors.
"""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SERVER_CORE = 0
LOAD_CORE = 1
_MARK = "PRESAGE_BENCH_MARK"
# Enough to clean up; nobody waits for an answer any more.
_STOP_SECONDS = 3
_KILL_SECONDS = 10


class ServerEnded(Exception):
    """A server ended by itself."""


@dataclass(frozen=True)
class Group:
    """A server's processes, of which the first is ours."""

    process: subprocess.Popen[bytes]
    mark: bytes
    log: Path

    def members(self) -> set[int]:
        """The ids of all that live: the first process, what it started, and what bears the mark."""
        parents = {int(entry.name): entry for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        family = {pid for pid, entry in parents.items() if self.mark in _read(entry / "environ")}
        children = {pid: _parent(entry) for pid, entry in parents.items()}
        grown = {self.process.pid} & children.keys() | family
        while more := {pid for pid, parent in children.items() if parent in grown} - grown:
            grown |= more
        return grown

    def pss_bytes(self) -> int:
        """Proportional set size of all: what is shared by n processes counts one n-th in each."""
        return sum(pss_bytes(pid) for pid in self.members())

    def last_words(self) -> str:
        """The last line of the log that says something."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it printed nothing"

    def check(self) -> None:
        """Raise ServerEnded when the first process has gone."""
        if self.process.poll() is not None:
            raise ServerEnded(f"ended with {self.process.returncode}: {self.last_words()}")

    def stop(self) -> None:
        """Ask all to end, wait for a bounded while, and kill those that are left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self._wait(_STOP_SECONDS)
        for pid in self._living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._wait(_KILL_SECONDS)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._living() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _living(self) -> set[int]:
        self.process.poll()  # takes a zombie away
        return {pid for pid in self.members() if _state(pid) not in {"Z", ""}}


@contextmanager
def pinned(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path, *, core: int = SERVER_CORE
) -> Iterator[Group]:
    """Run a command in a folder; it and all that it starts have the core from their first instruction.

    So libraries that ask how many processors there are hear of one, and make no threads that would fight for it.
    """
    mark = uuid.uuid4().hex
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            cwd=folder,
            env={**environment, _MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    group = Group(process, f"{_MARK}={mark}".encode(), log)
    try:
        yield group
    finally:
        group.stop()


def pss_bytes(pid: int | str) -> int:
    """Proportional set size of one process; 0 when it has gone."""
    for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def busy_share(seconds: float = 1.0) -> float:
    """How much of both cores somebody uses now: 0 on a quiet machine, 1 on a full one."""
    before = _ticks()
    time.sleep(seconds)
    idle, total = (after - earlier for after, earlier in zip(_ticks(), before, strict=True))
    return 1 - idle / total


def _ticks() -> tuple[int, int]:
    lines = Path("/proc/stat").read_text().splitlines()
    cores = [line.split()[1:] for line in lines if line.split()[0] in {f"cpu{SERVER_CORE}", f"cpu{LOAD_CORE}"}]
    return sum(int(core[3]) + int(core[4]) for core in cores), sum(int(ticks) for core in cores for ticks in core[:8])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has gone meanwhile, or is somebody else's
        return b""


def _parent(entry: Path) -> int:
    fields = _read(entry / "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


def _state(pid: int) -> str:
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    return fields[0].decode() if fields else ""
