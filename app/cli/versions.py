"""What a user of a command means by `NAME@VERSION`."""

import click

from app.registry.aliases import CHAMPION
from app.registry.sources import DirectorySource


def find_version(source: DirectorySource, name: str, wanted: str) -> int:
    """The version of that number or alias; the champion without either. Raises BadParameter, naming what there is."""
    check_model(source, name)
    versions, aliases = source.versions(name), source.aliases(name)
    number = int(wanted) if wanted.isdecimal() else aliases.get(wanted or CHAMPION)
    if number not in versions:
        known = ", ".join([*map(str, versions), *sorted(aliases)])
        raise click.BadParameter(f"{name} has no version {wanted or CHAMPION}; there are: {known}")
    return number


def check_model(source: DirectorySource, name: str) -> None:
    """Raises BadParameter when there is no model of that name."""
    if name not in source.names():
        raise click.BadParameter(f"there is no model {name} in {source.root}")
