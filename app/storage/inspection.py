"""What stands in a journal, looked at from outside: how far behind it is, and whether it is whole."""

import fcntl
import json
import time
from dataclasses import dataclass
from pathlib import Path

from app.storage.journal import segment_paths
from app.storage.lines import unframe


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """One segment: what it holds, and whether the process that wrote it lives."""

    path: Path
    size: int
    records: int
    damaged: int
    oldest_seconds: float
    alive: bool


def inspect(folder: Path) -> list[SegmentReport]:
    """Read every segment and check every record; a segment that vanishes meanwhile was drained."""
    reports = []
    for path in segment_paths(folder):
        try:
            reports.append(_inspect(path))
        except FileNotFoundError:
            continue
    return reports


def _inspect(path: Path) -> SegmentReport:
    records = damaged = size = 0
    oldest = 0.0
    with path.open("rb") as file:
        for line in file:
            size += len(line)
            if line.endswith(b"\n") and unframe(line[:-1]) is not None:
                oldest = oldest or age(line)
                records += 1
            else:
                damaged += 1
        alive = _is_locked(file.fileno())
    if alive and damaged:
        damaged -= not line.endswith(b"\n")  # its writer was just putting it there
    return SegmentReport(path, size, records, damaged, oldest, alive)


def _is_locked(descriptor: int) -> bool:
    """Whether a living process has the segment; asked so that two who look do not fool each other."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def age(start: bytes) -> float:
    """Seconds since the record that begins so was made; the first 48 bits of its id are milliseconds since 1970."""
    place = start.find(b'{"id":"')
    try:
        digits = start[place + 7 : place + 20].replace(b"-", b"")
        return max(0.0, time.time() - int(digits, 16) / 1000)
    except ValueError:
        return 0.0


def forget_dead_letters(path: Path, principal: str) -> int:
    """Remove a caller's records from the dead letters, and those that say no caller any more; returns how many."""
    if not path.exists():
        return 0
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        letters = file.readlines()
        kept = [letter for letter in letters if _principal(letter) not in (principal, None)]
        file.seek(0)
        file.truncate()
        file.writelines(kept)
    return len(letters) - len(kept)


def _principal(letter: str) -> str | None:
    """Whose record it is; None where it is too damaged to say."""
    try:
        found = json.loads(json.loads(letter)["record"])["principal"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(found)


def dead_letters(path: Path) -> int:
    """How many records no database would take."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)
