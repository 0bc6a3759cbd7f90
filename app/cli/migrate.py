"""`migrate`: bring the database to the schema of this release; once, by whoever comes first."""

import click

from app.config import read_settings
from app.storage.migrations import upgrade


@click.command()
def migrate() -> None:
    """Migrate the database at DATABASE_URL; does nothing when that is done already."""
    applied = upgrade(read_settings().storage)
    for one in applied:
        click.echo(f"presage: database: applied {one.revision}, {one.title}")
    if not applied:
        click.echo("presage: database: nothing to migrate")
