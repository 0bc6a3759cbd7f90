"""What this process may use: CPUs and memory of the machine, and what its container or limits of its own leave of them.

Python counts the machine's CPUs, or those that the process may run on. A container that is limited to one CPU of a
machine with 64 is throttled whatever it runs on, and its limits stand in its control group (cgroup), or in one above.
"""

import contextlib
import ctypes
import math
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
_PR_SET_PDEATHSIG = 1
# What OpenBLAS, of which numpy and scipy have one each, and OpenMP look at when they are loaded.
_POOLS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


def available_cpus(root: Path = _ROOT) -> int:
    """At least 1; half a CPU counts as one. `root` is where the file system with `proc` and `sys` begins."""
    try:
        mine = len(os.sched_getaffinity(0))
    except AttributeError:  # only some systems tell
        mine = os.cpu_count() or 1
    limits = [limit for folder in _groups(root, "cpu") if (limit := _cpu_limit(folder)) is not None]
    return max(1, min(mine, *(math.ceil(limit) for limit in limits))) if limits else mine


def available_memory(root: Path = _ROOT) -> int:
    """Bytes."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = ("memory.max", "memory.limit_in_bytes")
    limits = [_read(folder / file) for folder in _groups(root, "memory") for file in files]
    return min([machine, *(int(limit) for limit in limits if limit.isdigit())])


def start_numeric_threads(count: int) -> None:
    """Have numeric libraries that are imported from now on start so many threads, unless the environment says."""
    for name in _POOLS:
        os.environ.setdefault(name, str(count))  # noqa: TID251 -- written for libraries, not read


def die_with(parent: int) -> None:
    """From now on this process ends when its parent does, however that ends; only Linux can do it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was faster
        os._exit(1)


def limit_process(*, more_bytes: int, cpu_seconds: int, file_bytes: int) -> None:
    """For good: memory beyond what is taken now, CPU time (then SIGXCPU), the size of files; and no core dumps."""
    address_space = used_bytes(0) + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def only_idle_cpus() -> None:
    """From now on this process runs where nobody else wants to; only Linux has that, and some sandboxes forbid it."""
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has had; endless where nobody tells."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else math.inf


def seconds_without_cpu() -> float:
    """For how long this thread has been ready to run while others had the CPU; 0 where nobody tells."""
    fields = _read(Path("/proc/thread-self/schedstat")).split()
    return int(fields[1]) / 1e9 if fields else 0.0


def used_bytes(place: int) -> int:
    """Of this process: its whole address space (0), or what of it is in memory (1); 0 where nobody tells."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[place]) * resource.getpagesize()
    except OSError:
        return 0


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the groups that this process is in, with those above them: any of them may set a limit."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, separator, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not (separator and colon) or (controllers and controller not in controllers.split(",")):
            continue
        # Version 2 has one tree for all; version 1 one for each set of controllers, under any of their names.
        for base in [mount] if not controllers else [mount / controllers, mount / controller]:
            folder = base / path.lstrip("/")
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(base))


def _cpu_limit(folder: Path) -> float | None:
    """CPUs of one group; None where it sets no limit."""
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not period:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    try:
        limit = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # there is no such file, or it says `max`
        return None
    return limit if limit > 0 else None  # version 1 says -1


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
