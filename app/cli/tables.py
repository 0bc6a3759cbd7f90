"""Tables on a terminal: columns that line up, and nothing that needs a wide one."""

from collections.abc import Sequence
from typing import Any


def lines(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The head and the rows; what is empty is a dash."""
    table = [tuple(head), *(tuple("-" if cell in (None, "") else str(cell) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
