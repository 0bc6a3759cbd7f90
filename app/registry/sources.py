"""Where versions come from: a folder `<name>/<version>/` with a manifest and an artefact.

Names are checked against the manifest's own patterns before they touch the file system, so nothing a caller sends is
ever part of a path that is opened.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from app.errors import VersionRefused
from app.manifest import (
    CACHE_RULES_FILE,
    LOG_RULES_FILE,
    MANIFEST_FILE,
    SIGNATURES_FILE,
    TRAFFIC_RULES_FILE,
    CacheRules,
    LogRules,
    Manifest,
    TrafficRules,
    is_model_name,
    parse_manifest,
)
from app.registry.aliases import ALIASES_FILE, CHAMPION, Aliases, read_aliases

# A manifest of a hundred fields has a hundred KiB; a file of signatures one.
_MOST_MANIFEST_BYTES = 64 << 20
_MOST_SIGNATURES_BYTES = 64 << 10

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
        return self.parse(self.document(name, version), name, version)

    def document(self, name: str, version: int) -> bytes:
        """The manifest's bytes, read once: what is signed is what is parsed."""
        path = self.folder(name, version) / MANIFEST_FILE
        try:
            return _read(path, _MOST_MANIFEST_BYTES)
        except OSError as error:
            raise VersionRefused("manifest_unreadable", f"{path}: {error.strerror}") from None

    def parse(self, document: bytes, name: str, version: int) -> Manifest:
        """The manifest in a document. Raises VersionRefused when it does not fit, or speaks of another version."""
        path = self.folder(name, version) / MANIFEST_FILE
        try:
            manifest = parse_manifest(document)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the document"
            raise VersionRefused("manifest_invalid", f"{path}: {place}: {first['msg']}") from None
        if (manifest.name, manifest.version) != (name, version):
            said = f"{manifest.name} {manifest.version}"
            raise VersionRefused("manifest_invalid", f"{path} describes {said}, not {name} {version}")
        return manifest

    def signatures(self, name: str, version: int) -> bytes | None:
        """The bytes of the signatures beside a manifest; None where there are none."""
        path = self.folder(name, version) / SIGNATURES_FILE
        try:
            return _read(path, _MOST_SIGNATURES_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise VersionRefused("signature_invalid", f"{path}: {error.strerror}") from None

    def artefact(self, manifest: Manifest) -> bytes:
        """The artefact's bytes, read once: what is hashed is what is loaded. A file of another size is not read."""
        path = self.folder(manifest.name, manifest.version) / manifest.artefact.file
        try:
            return _read(path, manifest.artefact.size)
        except OSError as error:
            reason = "digest_mismatch" if error.errno == errno.EFBIG else "artefact_unreadable"
            raise VersionRefused(reason, f"{path}: {error.strerror}") from None

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


def _read(path: Path, most: int) -> bytes:
    """All of a regular file; raises OSError for one that is larger, and for what would have no end."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"has {status.st_size} bytes, and may have {most}")
        return file.read(status.st_size)
