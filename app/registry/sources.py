"""Where versions come from: a folder `<name>/<version>/` with a manifest and an artefact.

Names are checked against the manifest's own patterns before they touch the file system, so nothing a caller sends is
ever part of a path that is opened.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from app.errors import VersionRefused
from app.manifest import (
    ARTEFACT_FILE,
    CACHE_RULES_FILE,
    LOG_RULES_FILE,
    MANIFEST_FILE,
    TRAFFIC_RULES_FILE,
    CacheRules,
    LogRules,
    Manifest,
    TrafficRules,
    is_model_name,
    parse_manifest,
)
from app.registry.aliases import ALIASES_FILE, CHAMPION, Aliases, read_aliases

_Rules = TypeVar("_Rules", LogRules, CacheRules, TrafficRules)


class DirectorySource:
    """The models below one folder, read anew at each call."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Folders that can be models, sorted; a folder without versions is not one."""
        if not self.root.is_dir():
            return []
        return sorted(
            entry.name for entry in self.root.iterdir() if is_model_name(entry.name) and any(self._versions(entry.name))
        )

    def versions(self, name: str) -> list[int]:
        """The versions on disk in ascending order: 2 before 10."""
        return sorted(self._versions(name))

    def folder(self, name: str, version: int) -> Path:
        """Where a version lives, or would live."""
        return self.root / name / str(version)

    def manifest(self, name: str, version: int) -> Manifest:
        """Raises VersionRefused when the document is missing, does not fit, or speaks of another version."""
        path = self.folder(name, version) / MANIFEST_FILE
        try:
            manifest = parse_manifest(path.read_bytes())
        except OSError as error:
            raise VersionRefused("manifest_unreadable", f"{path}: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the document"
            raise VersionRefused("manifest_invalid", f"{path}: {place}: {first['msg']}") from None
        if (manifest.name, manifest.version) != (name, version):
            said = f"{manifest.name} {manifest.version}"
            raise VersionRefused("manifest_invalid", f"{path} describes {said}, not {name} {version}")
        return manifest

    def artefact(self, name: str, version: int) -> bytes:
        """The artefact's bytes, read once: what is hashed is what is unpickled."""
        path = self.folder(name, version) / ARTEFACT_FILE
        try:
            return path.read_bytes()
        except OSError as error:
            raise VersionRefused("artefact_unreadable", f"{path}: {error.strerror}") from None

    def aliases(self, name: str) -> Aliases:
        """The model's aliases; without a file, the newest version is the champion.

        Raises VersionRefused when the file does not fit.
        """
        path = self.root / name / ALIASES_FILE
        if not path.exists():
            return {CHAMPION: max(self._versions(name))}
        return read_aliases(path)

    def log_rules(self, name: str) -> LogRules:
        """What may be logged of the model; without a file, everything.

        Raises VersionRefused when the file does not fit: logging what should be dropped cannot be taken back.
        """
        return _read_rules(self.root / name / LOG_RULES_FILE, LogRules, "log_rules")

    def cache_rules(self, name: str) -> CacheRules:
        """Whether answers of the model are kept, and for whom; without a file, for everybody.

        Raises VersionRefused when the file does not fit: what went to the wrong caller cannot be taken back.
        """
        return _read_rules(self.root / name / CACHE_RULES_FILE, CacheRules, "cache_rules")

    def traffic_rules(self, name: str) -> TrafficRules:
        """How callers who name no version are shared out; without a file, the champion answers them all.

        Raises VersionRefused when the file does not fit.
        """
        return _read_rules(self.root / name / TRAFFIC_RULES_FILE, TrafficRules, "traffic_rules")

    def retention_days(self, name: str, default: int) -> int:
        """For how many days predictions are kept; 0, for ever, where the rules cannot be read: deleting is final."""
        try:
            days = self.log_rules(name).retention_days
        except VersionRefused:
            return 0
        return default if days is None else days

    def _versions(self, name: str) -> Iterator[int]:
        folder = self.root / name
        if folder.is_dir():
            for entry in folder.iterdir():
                number = entry.name.isascii() and entry.name.isdigit() and entry.name[0] != "0"
                if number and (entry / MANIFEST_FILE).is_file():  # a folder without one is still being copied
                    yield int(entry.name)


def _read_rules(path: Path, kind: type[_Rules], what: str) -> _Rules:
    """The rules in a file, or the default without one."""
    if not path.exists():
        return kind()
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise VersionRefused(f"{what}_unreadable", f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise VersionRefused(f"{what}_invalid", f"{path}: {error.errors(include_input=False)[0]['msg']}") from None
