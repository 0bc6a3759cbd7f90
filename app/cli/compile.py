"""`compile`: bring a model into its forms, as a server does when it loads it, and print how they compare."""

import click

from app.config import read_settings
from app.registry.aliases import CHAMPION
from app.registry.sources import DirectorySource
from app.registry.trust import Trust

_HEAD = ("FORM", "1 ROW", "64 ROWS", "1,000 ROWS", "DIFFERENCE", "LABELS", "CHOSEN FOR")
_RIGHT = {"1 ROW", "64 ROWS", "1,000 ROWS", "DIFFERENCE"}


@click.command("compile")
@click.argument("model", metavar="NAME[@VERSION]")
def compile(model: str) -> None:  # noqa: A001 -- the command's name
    """Print what a model's forms cost, in microseconds for each row, and whether they proved equal to scikit-learn.

    VERSION is a number or an alias; without it, the champion.
    """
    # scikit-learn's world takes seconds to import.
    from app.registry.loader import load_version  # noqa: PLC0415
    from app.runtimes.compile import Compiling  # noqa: PLC0415

    settings = read_settings().models
    source = DirectorySource(settings.models_dir)
    name, _, wanted = model.partition("@")
    version = _version(source, name, wanted or CHAMPION)
    compiling = Compiling(progress=lambda step: click.echo(f"{name} {version}: {step}", err=True))
    loaded = load_version(source, name, version, Trust(settings.model_modules), compiling)
    rows = [
        (
            form.form,
            *(_microseconds(form.microseconds.get(rows)) for rows in (1, 64, 1000)),
            "-" if form.largest_difference is None else f"{form.largest_difference:.0e}",
            "-" if form.labels_equal is None else "equal" if form.labels_equal else "differ",
            form.chosen_for or f"not used: {form.reason}",
        )
        for form in loaded.forms
    ]
    click.echo(f"{name} {version} is executed by: {loaded.runtime.name}")
    _print(rows)


def _version(source: DirectorySource, name: str, wanted: str) -> int:
    if name not in source.names():
        raise click.BadParameter(f"there is no model {name} in {source.root}")
    versions, aliases = source.versions(name), source.aliases(name)
    number = int(wanted) if wanted.isdecimal() else aliases.get(wanted)
    if number not in versions:
        known = ", ".join([*map(str, versions), *sorted(aliases)])
        raise click.BadParameter(f"{name} has no version {wanted}; there are: {known}")
    return number


def _microseconds(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:,.2f}" if figure < 1 else f"{figure:,.1f}"


def _print(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in (_HEAD, *rows)) for column in range(len(_HEAD))]
    for row in (_HEAD, *rows):
        cells = zip(_HEAD, row, widths, strict=True)
        line = "  ".join(cell.rjust(width) if head in _RIGHT else cell.ljust(width) for head, cell, width in cells)
        click.echo(line.rstrip())
