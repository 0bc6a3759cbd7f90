"""What is read from a slot is always one whole snapshot, the last one."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.telemetry.bulletins import Bulletins
from tests.support.server import ROOT, clean_environment

_AREA = 64

# Writers are killed wherever they are, and the next one goes on in the same slot. A snapshot is one byte, many times.
_KILLS = """
import os, signal
from app.telemetry.bulletins import Bulletins

slot, last, whole = Bulletins(1, area_bytes=1 << 20).slots[0], 0, 0
for _ in range(20):
    if not (pid := os.fork()):
        while True:
            sequence = slot.sequence + 1
            slot.write(bytes([sequence % 251]) * (200_000 + sequence % 1000))
    until = last + 20
    while last < until:
        if found := slot.read():
            assert found[0] >= last
            last, snapshot = found
            assert snapshot == bytes([last % 251]) * (200_000 + last % 1000)
            whole += 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    last, snapshot = slot.read()
    assert snapshot == bytes([last % 251]) * (200_000 + last % 1000)
print(whole)
"""


def test_writers_that_are_killed_leave_whole_snapshots() -> None:
    """Also while somebody reads as fast as others write."""
    command = [sys.executable, "-W", "error", "-c", _KILLS]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 20


@settings(deadline=None)
@given(former=st.binary(min_size=1, max_size=40), debris=st.binary(min_size=_AREA, max_size=_AREA))
def test_a_write_that_was_not_finished_is_not_seen(former: bytes, debris: bytes) -> None:
    """Whatever it has left in its area; the next one goes there."""
    bulletins = Bulletins(1, area_bytes=_AREA)
    slot = bulletins.slots[0]
    assert slot.read() is None
    assert slot.write(former)
    slot._areas[(slot.sequence + 1) % 2][:] = debris
    assert slot.read() == (1, former)
    assert slot.write(b"next")
    assert slot.read() == (2, b"next")
    bulletins.close()


def test_a_reader_that_is_overtaken_takes_nothing_for_the_snapshot_that_it_is_not() -> None:
    """Neither one that is being written, nor the last but one under the number of the last."""
    bulletins = Bulletins(1, area_bytes=_AREA)
    slot = bulletins.slots[0]
    slot.write(b"the first")
    slot.write(b"the second")
    slot._words[0] = 3
    assert slot.read() is None
    slot._words[0] = 2
    assert slot.read() == (2, b"the second")
    bulletins.close()


@pytest.mark.parametrize("length", [_AREA - 16, _AREA - 15])
def test_the_room_for_a_snapshot_ends_before_the_next_slot(length: int) -> None:
    """One that is a byte too long is refused, and the former one stays."""
    bulletins = Bulletins(2, area_bytes=_AREA)
    one, two = bulletins.slots
    two.write(b"the neighbour")
    one.write(b"the former")
    one.write(b"the other area")
    fits = length == _AREA - 16
    assert one.write(b"x" * length) is fits
    assert one.read() == ((3, b"x" * length) if fits else (2, b"the other area"))
    assert two.read() == (1, b"the neighbour")
    bulletins.close()
