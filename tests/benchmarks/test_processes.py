"""Servers under test: on one core, and ended with all that they started."""

import sys
import time
from pathlib import Path

import pytest

from benchmarks.processes import ServerEnded, pinned
from tests.support.server import clean_environment

# A child in a session of its own, that takes no notice of SIGTERM: what some servers' workers are.
_PARENT = """
import os, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
worker = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
print(worker.pid, len(os.sched_getaffinity(0)), flush=True)
time.sleep(60)
"""


def test_a_worker_in_a_session_of_its_own_is_ended_too(tmp_path: Path) -> None:
    """After the block nothing of the server lives, not even what left its group and ignores SIGTERM."""
    log = tmp_path / "log"
    with pinned([sys.executable, "-c", _PARENT], clean_environment(), tmp_path, log) as group:
        while not log.read_text().endswith("\n"):
            group.check()
            time.sleep(0.01)
        worker, cores = map(int, log.read_text().split())
        assert worker in group.members()
        assert group.pss_bytes() > 2**20
    assert not group.members()
    assert not Path(f"/proc/{worker}/cmdline").exists() or not Path(f"/proc/{worker}/cmdline").read_bytes()
    assert cores == 1


def test_a_server_that_ends_by_itself_says_why(tmp_path: Path) -> None:
    """The error has the exit code and the last line of the log."""
    command = [sys.executable, "-c", "import sys; print('no model'); sys.exit(3)"]
    with pinned(command, clean_environment(), tmp_path, tmp_path / "log") as group:
        group.process.wait(10)
        with pytest.raises(ServerEnded, match="ended with 3: no model"):
            group.check()
