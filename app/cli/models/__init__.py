"""`models`: the versions in MODELS_DIR, and what becomes of them; without a command, the list of them."""

import click

from app.cli.lazy import lazy_group

_PLACES = {
    "list": "app.cli.models.listing:list_models",
    "publish": "app.cli.models.publish:publish",
    "alias": "app.cli.models.aliases:alias",
    "traffic": "app.cli.models.aliases:traffic",
    "promote": "app.cli.models.release:promote",
    "rollback": "app.cli.models.release:rollback",
    "history": "app.cli.models.release:history",
    "keygen": "app.cli.models.keys:keygen",
    "sign": "app.cli.models.keys:sign",
    "verify": "app.cli.models.keys:verify",
}


@click.group(cls=lazy_group(_PLACES), invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> None:
    """List the models in MODELS_DIR, or do one of the following with them."""
    if context.invoked_subcommand is None:
        context.invoke(_list_command(context))


def _list_command(context: click.Context) -> click.Command:
    command = models.get_command(context, "list")
    assert command is not None  # noqa: S101 -- for the type checker; it is in the table
    return command
