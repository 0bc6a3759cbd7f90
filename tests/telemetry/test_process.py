"""What the kernel says of this process, also when it says nothing for a while."""

import subprocess
import sys

from tests.support.server import ROOT, clean_environment

_NO_MORE_FILES = """
import os, resource
from prometheus_client import CollectorRegistry
from app.telemetry.process import Process

process = Process(CollectorRegistry())
process.measure_share()
known = {metric.name for metric in process.collect()}
assert "process_cpu_seconds" in known, known
free = os.dup(0)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
process.measure_share()
assert {metric.name for metric in process.collect()} == known
"""


def test_at_the_limit_of_open_files_nothing_goes_away() -> None:
    """A counter that went away and came back would look as if it had started anew."""
    command = [sys.executable, "-W", "error", "-c", _NO_MORE_FILES]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
