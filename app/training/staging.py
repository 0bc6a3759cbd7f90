"""A version folder that appears whole or not at all.

It is built under a name that starts with a dot, which no server looks at, and renamed when it is complete and on disk.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from app.errors import PublishRefused
from app.registry.sources import DirectorySource


@dataclass(frozen=True)
class Stage:
    """A folder in the making; `source` finds it as a server would find the finished one."""

    source: DirectorySource
    folder: Path
    target: Path

    def write(self, file: str, content: bytes) -> None:
        """Write a file, and wait until it is on disk."""
        with (self.folder / file).open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    def reveal(self) -> None:
        """Give the folder its name. Raises PublishRefused when somebody else took it meanwhile."""
        _sync(self.folder)
        try:
            self.folder.rename(self.target)
        except OSError:
            raise PublishRefused(f"{self.target} exists already; versions are never overwritten") from None
        _sync(self.target.parent)


@contextmanager
def staged(source: DirectorySource, name: str, version: int) -> Iterator[Stage]:
    """A stage for `version`; whatever is left of it at the end goes away."""
    target = source.folder(name, version)
    root = target.parent / f".{version}.{uuid4().hex}"
    hidden = DirectorySource(root)
    folder = hidden.folder(name, version)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise PublishRefused(f"{target.parent} cannot be written: {error.strerror}") from None
    try:
        yield Stage(hidden, folder, target)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        if not any(target.parent.iterdir()):
            target.parent.rmdir()


def free_version(source: DirectorySource, name: str, wanted: int | None) -> int:
    """`wanted` when it is free, or else the number after the newest. Raises PublishRefused."""
    taken = source.versions(name)
    if wanted is None:
        return max(taken, default=0) + 1
    if source.folder(name, wanted).exists():
        have = ", ".join(map(str, taken))
        raise PublishRefused(f"{name} {wanted} exists already ({have}); versions are never overwritten")
    return wanted


def _sync(folder: Path) -> None:
    """Wait until a folder's entries are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
