"""The commands, each imported only when it is called: `serve` must not wait for what `train` needs."""

import sys

import click

from app import __version__
from app.cli.lazy import lazy_group
from app.errors import OperatorError

_COMMANDS = ("clients", "compile", "log", "migrate", "models", "replay", "serve", "token", "train")
_PLACES = {name: f"app.cli.{name}:{name}" for name in _COMMANDS}


@click.group(
    cls=lazy_group(_PLACES),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="presage")
def cli() -> None:
    """Presage serves fitted scikit-learn pipelines over HTTP. Settings come from the environment: docs/settings.md."""


def main() -> None:
    """Run a command; what its user can mend ends it with one message and exit code 1."""
    try:
        cli(prog_name="python -m app")
    except OperatorError as error:
        click.echo(f"presage: {error}", err=True)
        sys.exit(1)
