"""The revisions of the schema that this release knows, oldest first.

They are read from the names of the files, `alembic/versions/0001_<what>.py`: the service compares its database with
them, and has no other use for alembic, which would cost it 12 MB and a quarter of a second.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ROOT / "alembic" / "versions"

# What a database can be to a release: `ahead` is what a newer release has migrated, `absent` what nobody has.
SchemaState = Literal["current", "behind", "ahead", "absent", "unreachable"]


def revisions() -> tuple[str, ...]:
    """Such as `("0001", "0002")`: a line without branches, whose last is where a database should be."""
    return tuple(sorted(path.name.partition("_")[0] for path in VERSIONS.glob("[0-9]*_*.py")))


def compare(found: str | None, known: Sequence[str]) -> SchemaState:
    """What a database at revision `found` is to a release that knows these."""
    if found is None:
        return "absent"
    if found == known[-1]:
        return "current"
    return "behind" if found in known else "ahead"
