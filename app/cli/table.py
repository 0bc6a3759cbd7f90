"""Tables of plain text, as commands print them."""

from collections.abc import Collection, Sequence

import click


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()) -> None:
    """Print rows in columns that line up, those named in `right` at their right edges."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = zip(head, row, widths, strict=True)
        line = "  ".join(cell.rjust(width) if title in right else cell.ljust(width) for title, cell, width in cells)
        click.echo(line.rstrip())
