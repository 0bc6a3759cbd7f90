"""Tables on a terminal: columns that line up."""

from collections.abc import Collection, Sequence
from typing import Any

import click


def lines(head: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Collection[str] = ()) -> list[str]:
    """The head and the rows, columns named in `right` at their right edges; what is empty is a dash."""
    table = [tuple(head), *(tuple("-" if cell in (None, "") else str(cell) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(_padded, row, widths, [title in right for title in head])).rstrip() for row in table]


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Collection[str] = ()) -> None:
    """Print them."""
    click.echo("\n".join(lines(head, rows, right=right)))


def _padded(cell: str, width: int, right: bool) -> str:  # noqa: FBT001 -- for map
    return cell.rjust(width) if right else cell.ljust(width)
