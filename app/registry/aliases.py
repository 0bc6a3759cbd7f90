"""`aliases.json`: the names under which a model's versions are served, such as `champion` and `v1`."""

import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, TypeAdapter, ValidationError

from app.errors import VersionRefused
from app.manifest import Version, is_alias
from app.registry.files import replace_file

ALIASES_FILE = "aliases.json"
# Callers who name no version get the champion, or the challenger for a share of them; the shadow answers nobody, and
# the previous champion is kept warm for a rollback.
CHAMPION, CHALLENGER, SHADOW, PREVIOUS = "champion", "challenger", "shadow", "previous"
Aliases = dict[str, int]


def _alias(name: str) -> str:
    if not is_alias(name):
        raise ValueError("an alias is a lower-case word of at most 32 letters, digits and hyphens")
    return name


_document: TypeAdapter[Aliases] = TypeAdapter(dict[Annotated[str, AfterValidator(_alias)], Version])


def read_aliases(path: Path) -> Aliases:
    """Raises VersionRefused when the file cannot be read or does not fit."""
    try:
        return _document.validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise VersionRefused("aliases_unreadable", f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise VersionRefused("aliases_invalid", f"{path}: {error.errors(include_input=False)[0]['msg']}") from None


@contextmanager
def changing_model(folder: Path) -> Iterator[None]:
    """Nobody else changes what is written beside a model's versions meanwhile: reading and replacing are one step.

    Raises VersionRefused when there is no such folder.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise VersionRefused("aliases_unreadable", f"{folder}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_aliases(path: Path, aliases: Aliases) -> None:
    """Replace the file as a whole: a reader sees the old aliases or the new ones."""
    replace_file(path, aliases_document(aliases))


def aliases_document(aliases: Aliases) -> bytes:
    """The content of the file."""
    return _document.dump_json(dict(sorted(aliases.items())), indent=2) + b"\n"


def pointed(aliases: Aliases, version: int, names: Collection[str]) -> Aliases:
    """With these names for the version; when the champion moves by that, the one before is the previous champion."""
    changed = {**aliases, **dict.fromkeys(names, version)}
    before = aliases.get(CHAMPION)
    if before is not None and changed[CHAMPION] != before and PREVIOUS not in names:
        changed[PREVIOUS] = before
    return changed
