"""Stages: one number for each publication, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.errors import PublishRefused
from app.registry.sources import DirectorySource
from app.training.staging import free_version, staged
from tests.support.server import ROOT, clean_environment

_HOLD = """
import sys
from pathlib import Path
from app.registry.sources import DirectorySource
from app.training.staging import staged
with staged(DirectorySource(Path(sys.argv[1])), "toy", None) as stage:
    print(stage.version, flush=True)
    sys.stdin.read()
"""


@contextmanager
def _publishing(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of a publication of `toy` 1."""
    command = [sys.executable, "-c", _HOLD, str(root)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def _hidden(root: Path) -> list[Path]:
    return [entry for entry in (root / "toy").iterdir() if entry.name.startswith(".")]


def _make_old(path: Path) -> None:
    long_ago = time.time() - 2 * 3600
    os.utime(path, (long_ago, long_ago))


def test_a_number_that_is_being_published_is_taken(tmp_path: Path) -> None:
    """The next publication gets the next number, and one that asks for that very number is refused."""
    source = DirectorySource(tmp_path)
    with _publishing(tmp_path):
        with staged(source, "toy", None) as stage:
            assert stage.version == 2
        with pytest.raises(PublishRefused, match="toy 1 is being published by another process"):
            free_version(source, "toy", 1)
    assert free_version(source, "toy", 1) == 1


def test_a_folder_that_is_still_being_copied_has_its_number(tmp_path: Path) -> None:
    """It has no manifest yet, so no server sees it; and nobody else gets its place."""
    (tmp_path / "toy" / "3").mkdir(parents=True)
    assert free_version(DirectorySource(tmp_path), "toy", None) == 4


def test_what_a_killed_publication_has_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    """Not while it is young, and never while somebody works on it, however old it looks."""
    source = DirectorySource(tmp_path)
    with _publishing(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        (left,) = _hidden(tmp_path)
        with staged(source, "toy", None) as stage:
            assert stage.version == 1
            assert left.exists()
        _make_old(left)
        partial = tmp_path / "toy" / f".aliases.json.{'0' * 32}"
        partial.touch()
        _make_old(partial)
        with staged(source, "toy", None):
            assert not left.exists()
            assert not partial.exists()
    with _publishing(tmp_path):
        (working,) = _hidden(tmp_path)
        _make_old(working)
        with staged(source, "toy", None):
            assert working.exists()


def test_a_model_that_came_to_nothing_leaves_no_folder(tmp_path: Path) -> None:
    """Unless somebody else is making a version of it."""
    with staged(DirectorySource(tmp_path), "toy", None):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """In one sentence, with the place."""
    (tmp_path / "toy").touch()
    with (
        pytest.raises(PublishRefused, match=r"toy cannot be written: File exists"),
        staged(DirectorySource(tmp_path), "toy", None),
    ):
        pass
