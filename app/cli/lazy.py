"""Groups of commands that import a command only when it is called, or when its help is shown."""

from collections.abc import Mapping
from importlib import import_module

import click


def lazy_group(places: Mapping[str, str]) -> type[click.Group]:
    """A group whose commands are found at these places, by name: `MODULE:ATTRIBUTE`."""

    class LazyGroup(click.Group):
        """Knows the names of its commands, and nothing more before it is asked."""

        def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
            return list(places)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 -- click's signature
            if cmd_name not in places:
                return None
            module, _, attribute = places[cmd_name].partition(":")
            command: click.Command = getattr(import_module(module), attribute)
            return command

    return LazyGroup
