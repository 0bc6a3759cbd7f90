"""How many CPUs there are, is what the scheduler and every control group above allow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.machine import available_cpus
from tests.support.server import ROOT, clean_environment

MACHINE = len(os.sched_getaffinity(0))


def _tree(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A file system with these groups; `files` are below `/sys/fs/cgroup`."""
    for name, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{n}": t for n, t in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "110000 100000\n"}, min(2, MACHINE)),
        ("0::/\n", {"cpu.max": "max 100000\n"}, MACHINE),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, MACHINE),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "max 100000\n"}, 1),
        ("0::/a/b\n", {}, MACHINE),
        ("0::/../..\n", {"cpu.max": "100000 100000\n"}, 1),
        (
            "4:memory:/m\n3:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        ("3:cpuacct,cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "100000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 1),
        ("3:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, MACHINE),
        (
            "3:cpu:/a\n",
            {
                "cpu/a/cpu.cfs_quota_us": "-1\n",
                "cpu/a/cpu.cfs_period_us": "100000\n",
                "cpu/cpu.cfs_quota_us": "100000",
                "cpu/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        ("0::/\n", {"cpu.max": "nonsense\n"}, MACHINE),
        ("0::/\n", {"cpu.max": "100000 0\n"}, MACHINE),
        ("nonsense\n\n0::/\n", {"cpu.max": "100000 100000\n"}, 1),
    ],
)
def test_the_smallest_limit_counts(tmp_path: Path, cgroup: str, files: dict[str, str], expected: int) -> None:
    """Of both versions of control groups, wherever in the tree it stands; what makes no sense is no limit."""
    assert available_cpus(_tree(tmp_path, cgroup, files)) == expected


def test_without_control_groups_the_scheduler_decides(tmp_path: Path) -> None:
    """As on a system that has none."""
    assert available_cpus(tmp_path) == MACHINE
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_what_is_no_text_is_no_limit(tmp_path: Path) -> None:
    """A start does not end because of a file of the kernel's that cannot be read."""
    root = _tree(tmp_path, "", {})
    (root / "proc/self/cgroup").write_bytes(b"0::/\xff\n")
    assert available_cpus(root) == MACHINE


@pytest.mark.parametrize(("command", "threads"), [("serve", 1), ("train", available_cpus())])
def test_numeric_libraries_start_no_thread_that_is_not_wanted(command: str, threads: int) -> None:
    """Serving wants none beside its own, training as many as there are CPUs for it; both before the libraries come."""
    # Each command ends right after that, with an error: a port or a model that cannot be.
    code = f"""if True:
        import os
        from app.cli.{command} import {command}
        try:
            {command}.main(["nonsense"] if {command!r} == "train" else [], standalone_mode=False)
        except Exception:
            import scipy.linalg, sklearn.ensemble, threadpoolctl
            started = {{pool["num_threads"] for pool in threadpoolctl.threadpool_info()}}
            print(started, os.environ.get("OMP_NUM_THREADS"))
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean_environment(PORT="0" if command == "serve" else "8000"),
        capture_output=True,
        text=True,
        check=True,
    )
    # Where nothing limits the container the libraries' own number is the same: that they were told must show.
    assert done.stdout.splitlines()[-1] == f"{{{threads}}} {threads}"
