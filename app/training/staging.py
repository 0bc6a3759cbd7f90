"""A version folder that appears whole or not at all, under a number that nobody else gets.

It is built in a folder whose name starts with a dot, which no server looks at, and renamed when it is complete and on
disk. Whoever builds it holds a lock on that folder. So its number is taken before there is a version; and what a killed
process has left behind is known by its having no lock.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from app.errors import PublishRefused, VersionRefused
from app.registry.aliases import ALIASES_FILE, changing_model
from app.registry.files import sync_folder, write_file
from app.registry.sources import DirectorySource

_STAGE = re.compile(r"\.([1-9][0-9]*)\.[0-9a-f]{32}")
_PARTIAL_ALIASES = re.compile(rf"\.{re.escape(ALIASES_FILE)}\.[0-9a-f]{{32}}")
# So old is nothing that is being worked on, also where a lock is not seen by everybody, as on some network disks.
_LEFT_OVER_SECONDS = 3600
# A model's folder vanishes when its first publication comes to nothing, also under somebody who has just found it.
_ATTEMPTS = 10


@dataclass(frozen=True)
class Stage:
    """A folder in the making: `source` finds it as a server would find the finished one, which is to be in `models`."""

    models: DirectorySource
    source: DirectorySource
    name: str
    version: int

    @property
    def folder(self) -> Path:
        """Where it is built."""
        return self.source.folder(self.name, self.version)

    @property
    def target(self) -> Path:
        """Where it will be."""
        return self.models.folder(self.name, self.version)

    def write(self, file: str, content: bytes) -> None:
        """Write a file, and wait until it is on disk."""
        write_file(self.folder / file, content)

    def reveal(self) -> None:
        """Give the folder its name. Raises PublishRefused when somebody else took it meanwhile."""
        sync_folder(self.folder)
        try:
            self.folder.rename(self.target)
        except OSError:
            raise PublishRefused(f"{self.target} exists already; versions are never overwritten") from None
        sync_folder(self.target.parent)


@contextmanager
def staged(source: DirectorySource, name: str, wanted: int | None) -> Iterator[Stage]:
    """A stage for the version `wanted`, or for the next one; whatever is left of it at the end goes away.

    Raises PublishRefused when the number is taken, or being published by another process.
    """
    home = source.root / name
    root, lock, version = _reserved(source, name, wanted)
    try:
        stage = Stage(source, DirectorySource(root), name, version)
        stage.folder.mkdir(parents=True)
        yield stage
    finally:
        shutil.rmtree(root, ignore_errors=True)
        os.close(lock)
        with contextlib.suppress(OSError):  # there is something in it
            home.rmdir()


def free_version(source: DirectorySource, name: str, wanted: int | None) -> int:
    """`wanted` when it is free, or else the number after the newest. Raises PublishRefused."""
    home = source.root / name
    entries = [entry.name for entry in home.iterdir()] if home.is_dir() else []
    taken = {int(entry) for entry in entries if entry.isascii() and entry.isdigit()}
    begun = {int(found[1]) for entry in entries if (found := _STAGE.fullmatch(entry)) and _in_work(home / entry)}
    if wanted is None:
        return max(taken | begun, default=0) + 1
    if wanted in taken:
        have = ", ".join(map(str, source.versions(name)))
        raise PublishRefused(f"{name} {wanted} exists already ({have}); versions are never overwritten")
    if wanted in begun:
        raise PublishRefused(f"{name} {wanted} is being published by another process")
    return wanted


def _reserved(source: DirectorySource, name: str, wanted: int | None) -> tuple[Path, int, int]:
    """A new stage's folder, its lock, and its number: chosen and locked in one step."""
    home = source.root / name
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            home.mkdir(parents=True, exist_ok=True)
            with changing_model(home):
                _sweep(home)
                version = free_version(source, name, wanted)
                root = home / f".{version}.{uuid4().hex}"
                root.mkdir()
                return root, _lock(root), version
        except VersionRefused as error:
            reason = str(error)
        except FileNotFoundError as error:
            reason = str(error.strerror)
        except OSError as error:
            raise PublishRefused(f"{home} cannot be written: {error.strerror}") from None
    raise PublishRefused(f"{home} cannot be written: {reason}")


def _sweep(home: Path) -> None:
    """Remove what publications that were killed have left, once it is old."""
    for entry in home.iterdir():
        left_over = _STAGE.fullmatch(entry.name) or _PARTIAL_ALIASES.fullmatch(entry.name)
        with contextlib.suppress(OSError):
            if left_over and time.time() - entry.stat().st_mtime > _LEFT_OVER_SECONDS and not _in_work(entry):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _lock(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _in_work(path: Path) -> bool:
    """Whether somebody holds its lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
