"""Write `docs/settings.md` from the settings themselves, or check that it is what they say.

Run by `make fix` and `make check`: `python -m app.cli.reference [--check] FILE`.
"""

import sys
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import click
from annotated_types import Ge, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from app.config import Settings

_HEAD = """# Settings

Every setting is an environment variable. A value that cannot be used ends the start with one line for each such
variable; the value itself is never repeated.

This page is generated from `app/config.py`: `make fix` writes it, `make check` compares.
"""


def render() -> str:
    """The whole page."""
    parts = [_HEAD]
    for group in Settings.model_fields.values():
        kind = group.annotation
        if isinstance(kind, type) and issubclass(kind, BaseSettings):
            parts += [f"\n## {(kind.__doc__ or '').strip()}\n", "| variable | default | values | meaning |"]
            parts.append("|---|---|---|---|")
            parts += [_row(name, field) for name, field in kind.model_fields.items()]
    return "\n".join(parts) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    cells = (f"`{name.upper()}`", _default(field.default), _values(field), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()  # a default is no secret
    if value is None or value in ((), ""):
        return "empty"
    return f"`{value}`"


def _values(field: FieldInfo) -> str:
    choices = get_args(field.annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return ", ".join(f"`{choice}`" for choice in choices)
    lower = next((m.ge for m in field.metadata if isinstance(m, Ge)), None)
    upper = next((m.le for m in field.metadata if isinstance(m, Le)), None)
    if lower is not None:
        return f"{lower} to {upper}" if upper is not None else f"at least {lower}"
    if any(get_origin(choice) is Literal for choice in choices):
        return _either(choices)
    return "names, separated by commas" if choices and NoneType not in choices else "text"


def _either(choices: tuple[Any, ...]) -> str:
    """Of `int, or a word`: the words, then the numbers."""
    words = [f"`{word}`" for choice in choices if get_origin(choice) is Literal for word in get_args(choice)]
    fields = [part for choice in choices for part in get_args(choice) if isinstance(part, FieldInfo)]
    return ", ".join(words + [_values(field) for field in fields])


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Change nothing; fail when the file is not up to date.")
def reference(file: Path, *, check: bool) -> None:
    """Write the settings page."""
    page = render()
    if not check:
        file.write_text(page)
    elif not file.exists() or file.read_text() != page:
        click.echo(f"{file} does not say what app/config.py says: run `make fix`", err=True)
        sys.exit(1)


if __name__ == "__main__":
    reference()
