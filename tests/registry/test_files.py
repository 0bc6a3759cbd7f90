"""What is loaded is what was hashed, whatever becomes of the files meanwhile."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from app.errors import VersionRefused
from app.registry.loader import load_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from tests.support.signing import Evil, make_key, sign
from tests.support.versions import write_classifier, write_version


@contextmanager
def _swapping(place: Path, contents: Sequence[bytes]) -> Iterator[None]:
    """Meanwhile the file has one content after another."""
    stop = threading.Event()

    def swap() -> None:
        for content in cycle(contents):
            if stop.is_set():
                return
            (place.parent / ".next").write_bytes(content)
            (place.parent / ".next").replace(place)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        yield
    finally:
        stop.set()
        swapping.join()


def test_a_file_that_is_swapped_while_it_is_loaded_is_not_what_is_loaded(tmp_path: Path) -> None:
    """An evil artefact of the same size takes its place and gives it back all the time; it is never unpickled."""
    root, canary = tmp_path / "models", tmp_path / "canary"
    write_version(tmp_path / "evil", Evil(canary))
    write_classifier(root)
    place = root / "toy/1/model.joblib"
    good = place.read_bytes()
    evil = (tmp_path / "evil/toy/1/model.joblib").read_bytes().ljust(len(good), b"\x00")
    outcomes: Counter[str] = Counter()
    with _swapping(place, (evil, good)):
        while len(outcomes) < len(EITHER) or outcomes.total() < 200:
            outcomes[_outcome(root)] += 1
    assert set(outcomes) == EITHER
    assert not canary.exists()


EITHER = {"scikit-learn", "digest_mismatch"}


def _outcome(root: Path) -> str:
    try:
        return load_version(DirectorySource(root), "toy", 1, Trust()).runtime.name
    except VersionRefused as error:
        return error.refusal.reason


def test_a_link_leads_to_what_is_hashed(tmp_path: Path) -> None:
    """Volumes are made of links: one to the right bytes will do, and one to others will not."""
    write_classifier(tmp_path / "models")
    path = tmp_path / "models/toy/1/model.joblib"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert load_version(DirectorySource(tmp_path / "models"), "toy", 1, Trust()).version == 1
    content = (tmp_path / "elsewhere").read_bytes()
    (tmp_path / "elsewhere").write_bytes(bytes(len(content)))
    with pytest.raises(VersionRefused, match="digest_mismatch"):
        load_version(DirectorySource(tmp_path / "models"), "toy", 1, Trust())


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("model.joblib", "artefact_unreadable"),
        ("manifest.json", "manifest_unreadable"),
        ("manifest.sig", "signature_invalid"),
    ],
)
@pytest.mark.parametrize(
    "put",
    [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)],
    ids=["a pipe", "a folder", "a device", "a link to itself"],
)
@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_not_read(
    tmp_path: Path, put: Callable[[Path], Any], file: str, reason: str
) -> None:
    """It might have no end, or never begin."""
    root, keys = tmp_path / "models", tmp_path / "keys"
    write_classifier(root)
    sign(root, make_key(keys))
    path = root / "toy/1" / file
    path.unlink()
    put(path)
    with pytest.raises(VersionRefused) as caught:
        load_version(DirectorySource(root), "toy", 1, Trust(keys_dir=keys, signatures="require"))
    assert caught.value.refusal.reason == reason
