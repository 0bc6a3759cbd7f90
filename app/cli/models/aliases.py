"""`models alias` and `models traffic`: what the names of a model's versions stand for, and who gets which."""

from typing import Any

import click

from app.cli.models.opened import operator, releases, tell


@click.command()
@click.argument("name")
@click.argument("alias", metavar="ALIAS")
@click.argument("version", required=False)
@click.option("--delete", is_flag=True, help="Take the alias away.")
def alias(*, name: str, alias: str, version: str | None, delete: bool) -> None:
    """Have ALIAS of the model NAME stand for VERSION, a number or another alias.

    The version is loaded first, and refused as the service would refuse it. `challenger` and `shadow` are what `models
    traffic` shares out; the champion changes by `models promote` and `models rollback`.
    """
    if (version is None) != delete:
        raise click.UsageError("name the VERSION, or say --delete")
    with releases() as opened:
        if version is None:
            tell(opened.delete_alias(name, alias, by=operator()))
        else:
            tell(opened.set_alias(name, alias, version, by=operator()))


@click.command()
@click.argument("name")
@click.option("--challenger-weight", type=click.FloatRange(0, 1), help="The share of keys that the challenger answers.")
@click.option("--sticky-by", metavar="KEY", help="`principal`, `header:NAME` or `field:NAME`: what a key is.")
@click.option("--shadow-share", type=click.FloatRange(0, 1), help="The share of rows on which the shadow is tried.")
def traffic(*, name: str, **given: Any) -> None:
    """Share the traffic of the model NAME out; what is not named stays. Without an option, show how it is."""
    changes = {member: value for member, value in given.items() if value is not None}
    with releases() as opened:
        if changes:
            tell(opened.set_traffic(name, changes, by=operator()))
        for member, value in opened.traffic(name).model_dump().items():
            click.echo(f"{member}: {value}")
