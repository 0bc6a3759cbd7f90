"""`compile`: bring a model into its forms, as a server does when it loads it, and print how they compare."""

import click

from app.cli.tables import print_table
from app.cli.versions import find_version
from app.config import read_settings
from app.registry.sources import DirectorySource
from app.registry.trust import trust_of

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

    settings = read_settings()
    source, trust = (
        DirectorySource(settings.models.models_dir),
        trust_of(settings.models, production=settings.place.production),
    )
    name, _, wanted = model.partition("@")
    version = find_version(source, name, wanted)
    compiling = Compiling(progress=lambda step: click.echo(f"{name} {version}: {step}", err=True))
    loaded = load_version(source, name, version, trust, compiling)
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
    print_table(_HEAD, rows, right=_RIGHT)


def _microseconds(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:,.2f}" if figure < 1 else f"{figure:,.1f}"
