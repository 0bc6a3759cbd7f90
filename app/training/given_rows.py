"""Rows that come with an estimator: what goes in, as columns of JSON values, from a CSV file or MLflow's example."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.errors import PublishRefused
from app.manifest import Dtype, InputField
from app.registry.mlmodel import Input
from app.training.csv_files import CsvFile
from app.training.fields import TEXT_LENGTH, Column, converted, dtype_of

# A number that begins with a zero is a code: a postcode, the number of an article.
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BOOLEANS = {"true": True, "false": False}
_TEXT = "text"


@dataclass(frozen=True, eq=False)
class GivenRows:
    """`columns` by name, in the order in which the estimator takes them; None is a missing value.

    `fields` say of some of them what their values alone would not. `few`: the rows are examples, and what they range
    over says nothing.
    """

    columns: Mapping[str, Column]
    description: str
    sha256: str | None = None
    fields: tuple[InputField, ...] = field(default=())
    few: bool = False

    @property
    def size(self) -> int:
        """How many there are."""
        return len(next(iter(self.columns.values())))

    @property
    def texts(self) -> list[str]:
        """The only column. Raises PublishRefused when it is not all texts."""
        (name, column), *_ = self.columns.items()
        if not all(isinstance(value, str) and value.strip() for value in column):
            raise PublishRefused(f"the column {name} is what the estimator reads, and not all of it is text")
        return column


def rows_of_file(
    file: CsvFile, target: str, names: Sequence[str], inputs: Sequence[Input], *, texts: bool
) -> GivenRows:
    """The columns of a file that go in: those of `names`, or else all but the target.

    Raises PublishRefused or InvalidTrainingData.
    """
    wanted = [_text_column(file, target, names)] if texts else list(names) or [c for c in file.columns if c != target]
    file.require([*wanted, *([target] if target else [])])
    if not wanted:
        raise PublishRefused(f"{file.name} has no column beside the target")
    said = {each.name: each for each in inputs}
    columns = {name: [line.cells[name] for line in file.lines] for name in wanted}
    if not texts:
        columns = {name: _typed(cells, said.get(name)) for name, cells in columns.items()}
    fields = [_field(name, column, said.get(name)) for name, column in columns.items()]
    description = f"{file.name}, {len(file.lines):,} rows, given when it was published"
    return GivenRows(columns, description, file.sha256, tuple(each for each in fields if each))


def rows_of_example(example: Sequence[Any], names: Sequence[str], inputs: Sequence[Input]) -> GivenRows:
    """MLflow's example as rows. Raises PublishRefused when there is none, or it does not fit the signature."""
    if not example:
        raise PublishRefused("the model was logged without an input_example: say what goes in with --data FILE.csv")
    rows = [_as_mapping(row, names, inputs) for row in example]
    wanted = [each.name for each in inputs if each.name] or list(names) or list(rows[0])
    said = {each.name: each for each in inputs} or {}
    columns = {name: [row.get(name) for row in rows] for name in wanted}
    if len(inputs) == len(wanted):
        said = dict(zip(wanted, inputs, strict=True))
    columns = {name: _converted(name, column, said.get(name)) for name, column in columns.items()}
    fields = [_field(name, column, said.get(name), few=True) for name, column in columns.items()]
    description = f"the input example of MLflow's model, {len(rows):,} rows"
    return GivenRows(columns, description, fields=tuple(each for each in fields if each), few=True)


def _text_column(file: CsvFile, target: str, names: Sequence[str]) -> str:
    candidates = [name for name in file.columns if name != target]
    for name in (*names, _TEXT):
        if name in candidates:
            return name
    if len(candidates) != 1:
        raise PublishRefused(f"{file.name}: one column is to be read as text; name it {_TEXT}, or name the --target")
    return candidates[0]


def _typed(cells: Sequence[str], said: Input | None) -> Column:
    """JSON values: numbers and booleans where all cells are; an empty cell is missing."""
    if said is not None and said.dtype == "text":
        return [cell or None for cell in cells]
    present = [cell for cell in cells if cell]
    convert: Any = str
    if all(map(_WHOLE.fullmatch, present)):
        convert = int
    elif all(map(_NUMBER.fullmatch, present)):
        convert = float
    elif all(cell.lower() in _BOOLEANS for cell in present):
        convert = _boolean
    return [convert(cell) if cell else None for cell in cells]


def _boolean(cell: str) -> bool:
    return _BOOLEANS[cell.lower()]


def _as_mapping(row: Any, names: Sequence[str], inputs: Sequence[Input]) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        return {str(key): value for key, value in row.items()}
    values = row if isinstance(row, list) else [row]
    own = [each.name for each in inputs if each.name] or list(names)
    if not own:
        own = [_TEXT] if isinstance(row, str) else [f"x{i}" for i in range(len(values))]
    if len(own) != len(values):
        raise PublishRefused(f"the input example has rows of {len(values)} values, and the model {len(own)} inputs")
    return dict(zip(own, values, strict=True))


def _converted(name: str, column: Column, said: Input | None) -> Column:
    return converted(name, column, said.dtype) if said else column


def _field(name: str, column: Column, said: Input | None, *, few: bool = False) -> InputField | None:
    """What is known of a column beside its values; None when they say it all."""
    dtype = said.dtype if said else _inferred(name, column)
    if dtype is None:
        raise PublishRefused(f"the column {name} is empty, so nobody knows what goes in; leave it out, or give a row")
    more: dict[str, Any] = {}
    if said is not None and not said.required:
        more["missing"] = "allow"
    if few and dtype in {"float", "integer"}:
        more |= {"minimum": None, "maximum": None}
    if dtype == "text":
        more["max_length"] = max([TEXT_LENGTH, *(len(value) for value in column if value is not None)])
    if dtype == "category" or (dtype == "text" and said is None and not few):
        return None
    return InputField(name=name, dtype=dtype, **more)


def _inferred(name: str, column: Column) -> Dtype | None:
    return dtype_of(name, column) if any(value is not None for value in column) else None
