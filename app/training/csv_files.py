"""CSV files of training data: whatever is wrong is said with its line and column, and no more of the data than that."""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import InvalidTrainingData

LEAST_ROWS = 10


@dataclass(frozen=True)
class Line:
    """One row, with its file and the number of the line on which it ends."""

    file: str
    number: int
    cells: dict[str, str]

    def number_in(self, column: str) -> float:
        """The cell as a finite number. Raises InvalidTrainingData."""
        try:
            value = float(self.cells[column])
        except ValueError:
            raise self.wrong(column, "is not a number" if self.cells[column] else "is empty") from None
        if not -3.4e38 < value < 3.4e38:  # noqa: PLR2004 -- what trees, which work in float32, can hold; and no NaN
            raise self.wrong(column, "is not a finite number")
        return value

    def text_in(self, column: str) -> str:
        """The cell without white space around it. Raises InvalidTrainingData when nothing is left."""
        text = self.cells[column].strip()
        if not text:
            raise self.wrong(column, "is empty")
        return text

    def wrong(self, column: str, what: str) -> InvalidTrainingData:
        """The error for one cell."""
        return InvalidTrainingData(f"{self.file}, line {self.number}, column {column}: {what}")


@dataclass(frozen=True)
class CsvFile:
    """A file with a header, read whole."""

    name: str
    sha256: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]

    def require(self, columns: Sequence[str]) -> None:
        """Raises InvalidTrainingData with every column that is missing."""
        missing = [column for column in columns if column not in self.columns]
        if missing:
            raise InvalidTrainingData(
                f"{self.name} lacks {_columns(missing)}; its header must name {_columns(columns)}"
            )


def read_csv(path: Path) -> CsvFile:
    """Read a comma-separated file in UTF-8 whose first line names the columns. Raises InvalidTrainingData.

    The digest is that of the content with plain line ends, so that a checkout on another system has the same.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidTrainingData(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidTrainingData(f"{path.name}, line {line}: is not UTF-8") from None
    text = text.replace("\r\n", "\n")
    columns, lines = _parsed(path.name, text)
    if len(lines) < LEAST_ROWS:
        raise InvalidTrainingData(f"{path.name} has {len(lines)} rows, too few to learn from: {LEAST_ROWS} at least")
    return CsvFile(path.name, hashlib.sha256(text.encode()).hexdigest(), columns, lines)


def _parsed(name: str, text: str) -> tuple[tuple[str, ...], tuple[Line, ...]]:
    """The header and the rows; blank lines are passed over."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = tuple(cell.strip() for cell in next(filter(None, reader), ()))
        if not header:
            raise InvalidTrainingData(f"{name} is empty; its first line must name the columns")
        if len(set(header)) != len(header):
            raise InvalidTrainingData(f"{name} has two columns of the same name")
        lines = [
            Line(name, reader.line_num, _row(name, reader.line_num, header, cells)) for cells in filter(None, reader)
        ]
    except csv.Error as error:
        raise InvalidTrainingData(f"{name}, line {reader.line_num}: {error}") from None
    return header, tuple(lines)


def _row(name: str, number: int, header: tuple[str, ...], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise InvalidTrainingData(
            f"{name}, line {number}: has {len(cells)} cells, and the header {len(header)} columns"
        )
    return dict(zip(header, cells, strict=True))


def _columns(names: Sequence[str]) -> str:
    return ("the column " if len(names) == 1 else "the columns ") + ", ".join(names)
