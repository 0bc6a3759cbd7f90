"""The memory that all workers of one service share for their metrics, made before the first of them is forked.

It belongs to no file, so no disk can be full of it. Each worker has a slot, into which it alone writes.
"""

import mmap
import os
import sys
import zlib

AREA_BYTES = 4 << 20

_WORD = 8
# Of a slot: the number of the last complete snapshot, its owner's pid, and how often it has asked the others for one.
_SEQUENCE, _OWNER, _ASKED = 0, 1, 2
_SLOT_BYTES = 64
# Of each of its two areas.
_LENGTH, _CHECKSUM = 0, 1
_AREA_HEAD_BYTES = 2 * _WORD
# To be overtaken once, the writer has to write twice while a reader copies.
_TRIES = 8


class Slot:
    """Where one worker publishes; what it published last is always whole, whenever it is killed."""

    def __init__(self, memory: memoryview) -> None:
        self._words = memory[:_SLOT_BYTES].cast("Q")
        half = (len(memory) - _SLOT_BYTES) // 2
        self._areas = [memory[_SLOT_BYTES + i * half : _SLOT_BYTES + (i + 1) * half] for i in range(2)]

    @property
    def sequence(self) -> int:
        """How many snapshots have been published here."""
        return self._words[_SEQUENCE]

    @property
    def owner(self) -> int:
        """The process that publishes here; 0 for none that lives."""
        return self._words[_OWNER]

    @owner.setter
    def owner(self, pid: int) -> None:
        self._words[_OWNER] = pid

    @property
    def asked(self) -> int:
        """How often its owners have asked the others to publish."""
        return self._words[_ASKED]

    @asked.setter
    def asked(self, times: int) -> None:
        self._words[_ASKED] = times

    def write(self, snapshot: bytes) -> bool:
        """Publish; False, and the former one stays, where it is too long. Only for the owner."""
        sequence = self.sequence + 1
        # The one that nobody reads; the number, one word, is what makes it the other one.
        area = self._areas[sequence % 2]
        if len(snapshot) > len(area) - _AREA_HEAD_BYTES:
            return False
        head = area[:_AREA_HEAD_BYTES].cast("Q")
        head[_LENGTH], head[_CHECKSUM] = len(snapshot), _checksum(snapshot, sequence)
        area[_AREA_HEAD_BYTES : _AREA_HEAD_BYTES + len(snapshot)] = snapshot
        self._words[_SEQUENCE] = sequence
        return True

    def read(self) -> tuple[int, bytes] | None:
        """The last snapshot and its number; None where there is none, or where it was overwritten again and again."""
        for _ in range(_TRIES):
            sequence = self.sequence
            area = self._areas[sequence % 2]
            length, checksum = area[:_AREA_HEAD_BYTES].cast("Q")
            snapshot = bytes(area[_AREA_HEAD_BYTES : _AREA_HEAD_BYTES + length])
            if sequence and checksum == _checksum(snapshot, sequence):
                return sequence, snapshot
        return None


def _checksum(snapshot: bytes, sequence: int) -> int:
    """Another one for the same bytes under another number, so a reader knows which of the two it has copied."""
    return zlib.crc32(snapshot, sequence & 0xFFFF_FFFF)


class Bulletins:
    """A slot for each worker, and a bell to wake it by."""

    def __init__(self, slots: int, *, area_bytes: int = AREA_BYTES) -> None:
        size = _SLOT_BYTES + 2 * area_bytes
        # Pages that nobody touches take no memory.
        memory = memoryview(mmap.mmap(-1, slots * size))
        starts = range(0, len(memory), size)
        self.slots = [Slot(memory[start : start + size]) for start in starts]
        self.bells = [_bell() for _ in starts] if sys.platform == "linux" else []

    def ring(self, slot: int) -> None:
        """Wake the worker in that slot; where there are no bells it publishes in its own time."""
        if self.bells:
            os.eventfd_write(self.bells[slot], 1)

    def close(self) -> None:
        """Give the bells back; the memory goes with its last user."""
        for bell in self.bells:
            os.close(bell)
        self.bells = []


def _bell() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
