"""The journal: append-only segment files on local disk, one set for each process, until the database has them.

A record is on disk (in the kernel's page cache) before its answer leaves, by one `write`. It survives the death of the
process; `sync` forces it to the device against a loss of power. A record is a line (`lines.py`), and a damaged line
costs only itself.

A process holds a lock on each of its segments for as long as it lives; the kernel drops the lock when it dies, however
it dies, and another process adopts the segment then. Nothing else is shared between processes.

What was appended last is also kept in memory, up to a bound, so that the drain seldom has to read a file. Memory only
saves reading: what is gone from it, for whatever reason, is in the file.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

SUFFIX = ".journal"
SEGMENT_BYTES = 16 << 20
# Some fourteen thousand records: about a second of full load on one core.
KEPT_BYTES = 4 << 20
_BEGINNING = 64
_LOCKED_ELSEWHERE = BlockingIOError


class JournalError(Exception):
    """A record could not be put on disk; `reason` is a stable word for metrics and the ready answer."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(slots=True, eq=False)
class Segment:
    """A file of records whose lock this process holds; `drained` bytes of its `size` are in the database.

    `kept` holds what was appended from byte `kept_from` on. That place lies between two records, and never moves back.
    """

    path: Path
    descriptor: int
    size: int
    open: bool
    kept_from: int
    kept: deque[bytes] = field(default_factory=deque)
    drained: int = 0
    begun: float = field(default_factory=time.monotonic)

    @property
    def pending(self) -> int:
        """Bytes that the database does not have yet."""
        return self.size - self.drained

    @property
    def unread(self) -> int:
        """Bytes that the database does not have yet and memory has no more: whole records."""
        return self.kept_from - self.drained

    def read(self, most: int) -> bytes:
        """Up to `most` bytes of the file from the first that is not drained."""
        return os.pread(self.descriptor, min(most, self.pending), self.drained)

    def delete(self) -> None:
        """All of it is in the database."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self.descriptor)


class Journal:
    """This process's segments. `append` may be called by any thread; draining belongs to one."""

    def __init__(
        self, folder: Path, *, max_bytes: int, segment_bytes: int = SEGMENT_BYTES, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._most_kept = kept_bytes
        self._kept = 0
        self._lock = threading.Lock()
        self._segments: list[Segment] = []
        self._writing: Segment | None = None
        self._pending = 0
        self._unsynced: set[Segment] = set()
        self._sequence = 0

    @property
    def pending(self) -> int:
        """Bytes that wait for the database, adopted segments included."""
        return self._pending

    def append(self, frames: bytes) -> None:
        """Put whole lines at the end, all or none. Raises JournalError."""
        with self._lock:
            if self._pending + len(frames) > self._max_bytes:
                raise JournalError("full", f"the journal has reached its {self._max_bytes} bytes")
            segment = self._segment_for(len(frames))
            try:
                written = os.write(segment.descriptor, frames)
            except OSError as error:
                self._end_segment()
                raise JournalError("unwritable", error.strerror or "the write failed") from error
            if written != len(frames):
                self._take_back(segment)
                raise JournalError("unwritable", "the disk took only a part of the record")
            segment.size += written
            self._pending += written
            self._unsynced.add(segment)
            self._keep(segment, frames)

    def sync(self) -> None:
        """Force what was appended to the device. Raises JournalError."""
        with self._lock:
            # Of our own, since a segment that is drained meanwhile is closed.
            descriptors = [os.dup(segment.descriptor) for segment in self._unsynced]
            self._unsynced = set()
        try:
            for descriptor in descriptors:
                os.fsync(descriptor)
        except OSError as error:
            raise JournalError("unwritable", error.strerror or "the sync failed") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def rotate(self, *, older_than: float = 0.0) -> None:
        """End the present segment if it is that many seconds old; the next record begins another.

        What is drained stays on disk until its segment is deleted; so an old one must not stay open.
        """
        with self._lock:
            segment = self._writing
            if segment is not None and segment.size and time.monotonic() - segment.begun >= older_than:
                self._end_segment()

    def segments(self) -> list[Segment]:
        """Those with something to drain, oldest first."""
        with self._lock:
            return [segment for segment in self._segments if segment.pending]

    def oldest(self) -> bytes:
        """The beginning of the first record that is not drained; nothing when there is none."""
        with self._lock:
            return next((segment.read(_BEGINNING) for segment in self._segments if segment.pending), b"")

    def take(self, segment: Segment, most: int) -> list[bytes]:
        """What was appended from the first byte that is not drained on, at least `most` bytes if there are so many.

        Nothing where only the file has it. It is handed out once: if it is not acknowledged, the file has it.
        """
        taken: list[bytes] = []
        with self._lock:
            if not segment.unread:
                while segment.kept and segment.unread < most:
                    taken.append(segment.kept.popleft())
                    segment.kept_from += len(taken[-1])
                    self._kept -= len(taken[-1])
        return taken

    def acknowledge(self, segment: Segment, count: int) -> None:
        """The database has `count` further bytes of the segment; one that is ended and drained is deleted."""
        with self._lock:
            segment.drained += count
            self._pending -= count
            if not segment.pending and not segment.open:
                self._drop(segment)

    def adopt(self) -> int:
        """Take over the segments of processes that are dead; returns how many."""
        known = {segment.path for segment in self._segments}
        adopted = 0
        for path in segment_paths(self.folder):
            segment = None if path in known else _take(path)
            if segment is None:
                continue
            with self._lock:
                if segment.size:
                    self._segments.insert(0, segment)
                    self._segments.sort(key=lambda s: s.path.name)
                    self._pending += segment.size
                    adopted += 1
                else:
                    segment.delete()
        return adopted

    def close(self) -> None:
        """Let go of everything; what is not drained stays for whoever comes next."""
        with self._lock:
            self._end_segment()
            for segment in self._segments:
                os.close(segment.descriptor)
            self._segments.clear()

    def _segment_for(self, count: int) -> Segment:
        segment = self._writing
        if segment is not None and segment.size and segment.size + count > self._segment_bytes:
            self._end_segment()
            segment = None
        if segment is None:
            segment = self._writing = self._new_segment()
            self._segments.append(segment)
        return segment

    def _new_segment(self) -> Segment:
        """Locked before it has the name under which others would look for it."""
        self._sequence += 1
        name = f"{time.time_ns():020d}-{os.getpid()}-{self._sequence}"
        hidden = self.folder / f".{name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(hidden, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path = hidden.rename(self.folder / f"{name}{SUFFIX}")
        except OSError as error:
            raise JournalError("unwritable", error.strerror or "a segment could not be made") from error
        return Segment(path, descriptor, size=0, open=True, kept_from=0)

    def _keep(self, segment: Segment, frames: bytes) -> None:
        """Past the bound all is let go, and keeping begins anew; the drain reads files until it has caught up."""
        segment.kept.append(frames)
        self._kept += len(frames)
        if self._kept > self._most_kept:
            self._kept = 0
            for each in self._segments:
                each.kept.clear()
                each.kept_from = each.size

    def _end_segment(self) -> None:
        segment, self._writing = self._writing, None
        if segment is not None:
            segment.open = False
            if not segment.pending:
                self._drop(segment)

    def _drop(self, segment: Segment) -> None:
        self._segments.remove(segment)
        self._unsynced.discard(segment)
        segment.delete()

    def _take_back(self, segment: Segment) -> None:
        """Remove a part of a record, and end the segment: once it is drained, its deletion makes room on the disk."""
        with contextlib.suppress(OSError):
            os.ftruncate(segment.descriptor, segment.size)
        self._end_segment()


def _take(path: Path) -> Segment | None:
    """The segment at `path` with its lock, unless its process lives or somebody else was faster."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        if status.st_nlink:  # else it was drained and deleted between our looking and our locking
            return Segment(path, descriptor, status.st_size, open=False, kept_from=status.st_size)
    except _LOCKED_ELSEWHERE:
        pass
    os.close(descriptor)
    return None


def segment_paths(folder: Path) -> list[Path]:
    """Every segment there, whoever writes it, oldest first."""
    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
