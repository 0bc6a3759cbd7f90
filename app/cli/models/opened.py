"""What the commands that change a model share: where it is, who sits there, and errors as one line."""

import os
import pwd
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from app.config import read_settings
from app.errors import OperatorError, PresageError, StorageUnavailable, VersionRefused
from app.release.changes import Change, Releases
from app.release.notes import LATER
from app.storage.database import Database
from app.telemetry.logs import configure_logs


@contextmanager
def releases() -> Iterator[Releases]:
    """The operations, on MODELS_DIR and the database; what they refuse is a message for the person who asked."""
    settings = read_settings()
    # Standard output belongs to what was asked for.
    configure_logs(level=settings.server.log_level, json=settings.json_logs, stream=sys.stderr)
    with Database(settings.storage) as database:
        try:
            yield Releases(settings.models, database, production=settings.place.production)
        except PresageError as error:
            raise OperatorError(_told(error)) from None


def operator() -> str:
    """Who sits at the terminal, as the audit has it: by the process's own user, and by no variable that says so."""
    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:  # a container may run as a number without a name
        return f"cli:{os.getuid()}"


def tell(change: Change) -> None:
    """What came of it, in a sentence or two."""
    click.echo(f"{change.model}: {change.detail}")
    if not change.recorded:
        click.echo(f"presage: {LATER}", err=True)


def _told(error: PresageError) -> str:
    wrong = "; ".join(f"{one.field} {one.detail}" for one in error.errors) or error.detail
    if isinstance(error.__cause__, VersionRefused | OSError):
        wrong += f" ({error.__cause__})"
    if isinstance(error, StorageUnavailable):
        wrong += "; nothing has changed. Is it there, and migrated (`python -m app migrate`)?"
    return wrong
