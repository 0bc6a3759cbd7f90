"""How many CPUs there are, is what the scheduler and every control group above allow."""

import os
from pathlib import Path

import pytest

from app.cpus import available_cpus

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
