"""Watch: which models have changed on disk since the last look, found out by a few calls of `stat` for each.

A version is immutable once it is there, so its files are looked at only as long as something is wrong with it, such as
that it is still being copied.
"""

import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from app.manifest import CACHE_RULES_FILE, LOG_RULES_FILE, MANIFEST_FILE, TRAFFIC_RULES_FILE, is_model_name
from app.registry.aliases import ALIASES_FILE

_FILES = (ALIASES_FILE, TRAFFIC_RULES_FILE, LOG_RULES_FILE, CACHE_RULES_FILE)
_NUMBER = re.compile(r"[1-9][0-9]*")
# Two changes that are so close may have the same time: what has just changed is looked at again.
_RECENT_SECONDS = 1.0

Stamps = tuple["_Stamp", ...]
_Stamp = tuple[int, int, int] | None


class Watch:
    """Of the models below `root`; `unsettled(name)` gives versions that are known and may still change."""

    def __init__(self, root: Path, unsettled: Callable[[str], Iterable[int]]) -> None:
        self._root = root
        self._unsettled = unsettled
        self._seen: dict[str, Stamps] = {}
        self._unfinished: dict[str, list[Path]] = {}
        self._recent: set[str] = set()

    def changed(self) -> list[str]:
        """Names, sorted; all that there are at first. What is gone counts as changed once. Raises OSError."""
        with os.scandir(self._root) as entries:
            names = {entry.name for entry in entries if is_model_name(entry.name) and entry.is_dir()}
        found = [name for name in names if self._has_changed(name)]
        for gone in self._seen.keys() - names:
            del self._seen[gone], self._unfinished[gone]
            found.append(gone)
        return sorted(found)

    def _has_changed(self, name: str) -> bool:
        now = time.time_ns()
        found = self._stamps(name)
        changed = found != self._seen.get(name) or name in self._recent
        self._seen[name] = found
        if changed:
            self._unfinished[name] = _unfinished(self._root / name)
        newest = max((stamp[0] for stamp in found if stamp), default=0)
        if abs(now - newest) < _RECENT_SECONDS * 1e9:
            self._recent.add(name)
        else:
            self._recent.discard(name)
        return changed

    def _stamps(self, name: str) -> Stamps:
        folder = self._root / name
        versions = {folder / str(number) for number in self._unsettled(name)} | {*self._unfinished.get(name, ())}
        # As text: four times a second, paths that are objects would cost as much as the calls themselves.
        place = str(folder)
        own = (_stamp(place), *(_stamp(f"{place}/{file}") for file in _FILES))
        return own + tuple(stamp for version in sorted(versions) for stamp in stamps(version))


def stamps(version: Path) -> Stamps:
    """Of a version's folder and all that is in it: they differ when something there has changed."""
    return tuple(_stamp(path) for path in (version, *_listed(version)))


def _unfinished(folder: Path) -> list[Path]:
    """Versions that are being copied: their manifest is not there yet."""
    return [path for path in _listed(folder) if _NUMBER.fullmatch(path.name) and not (path / MANIFEST_FILE).exists()]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _stamp(path: str | Path) -> _Stamp:
    try:
        status = os.stat(path)  # noqa: PTH116 -- as said
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
