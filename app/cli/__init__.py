"""The commands, each imported only when it is called: `serve` must not wait for what `train` needs."""

import sys
from importlib import import_module

import click

from app import __version__
from app.errors import OperatorError

# Name → module of this package; each has a click command of the same name.
COMMANDS = ("clients", "compile", "log", "migrate", "models", "serve", "token", "train")


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 -- click's signature
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"app.cli.{cmd_name}"), cmd_name)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
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
