"""Notes: what makes a change of a model's files and its row in the audit one thing, through crashes of either.

A change first lies beside the model in `.changes/`: the new content of the file as `ID.next`, and the audit's entry as
`ID.json`. Renaming `ID.next` to the file's name is the change. So whoever finds a note later sees what became of it:
with its `.next` it never happened; without it it did, and is to be recorded. The note goes when the database has it.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from app.registry.files import sync_folder, write_file
from app.storage.audit import Entry

FOLDER = ".changes"
LATER = "the database is away, or not migrated: this goes on record once a service, or one of these commands, finds it"

_entry: TypeAdapter[Entry] = TypeAdapter(Entry)


@dataclass(frozen=True, slots=True)
class Note:
    """One change of one file of the model in `folder`. All methods need the model's lock, and raise OSError."""

    folder: Path
    stem: str

    @property
    def happened(self) -> bool:
        """Whether the file has been replaced."""
        return not self._path("next").exists()

    @property
    def entry(self) -> Entry:
        """What is to be recorded. Raises ValueError where somebody else has written into it."""
        try:
            return _entry.validate_json(self._path("json").read_bytes())
        except ValidationError:
            raise ValueError(f"{self._path('json')} is no note of a change") from None

    def carry_out(self, file: str) -> None:
        """Replace the model's file."""
        self._path("next").replace(self.folder / file)
        sync_folder(self.folder)

    def mark(self) -> None:
        """What it tells of has happened already, by another way than by this note."""
        self._path("next").unlink()

    def forget(self) -> None:
        """The entry first: without it, what is left of a change is only litter."""
        self._path("json").unlink(missing_ok=True)
        self._path("next").unlink(missing_ok=True)

    def _path(self, ending: str) -> Path:
        return self.folder / FOLDER / f"{self.stem}.{ending}"


def write_note(folder: Path, entry: Entry, content: bytes) -> Note:
    """Put a change that is to be on disk; or leave nothing of it, where that cannot be written."""
    place, stem = folder / FOLDER, str(entry.id)
    partial = place / f"{stem}.partial"
    try:
        place.mkdir(exist_ok=True)
        write_file(place / f"{stem}.next", content)
        # Whole or not at all: half an entry would be a change without a record.
        write_file(partial, _entry.dump_json(entry))
        partial.replace(place / f"{stem}.json")
        sync_folder(place)
    except OSError:
        for ending in ("json", "partial", "next"):
            with contextlib.suppress(OSError):
                (place / f"{stem}.{ending}").unlink()
        raise
    return Note(folder, stem)


def notes(folder: Path) -> Iterator[Note]:
    """Those of a model, oldest first; litter is cleared away."""
    place = folder / FOLDER
    names = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    for name in names:
        stem, _, ending = name.rpartition(".")
        if ending == "json":
            yield Note(folder, stem)
        elif f"{stem}.json" not in names:
            (place / name).unlink(missing_ok=True)


def has_notes(folder: Path) -> bool:
    """Whether something may be left to do; asked without the lock."""
    return any((folder / FOLDER).glob("*.json"))
