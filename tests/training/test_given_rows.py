"""Rows that come with an estimator: what a CSV file, or MLflow's example, says of the inputs."""

from pathlib import Path
from typing import Any

import pytest

from app.errors import InvalidTrainingData, PublishRefused
from app.registry.mlmodel import Input
from app.training.csv_files import CsvFile, read_csv
from app.training.given_rows import GivenRows, rows_of_example, rows_of_file


def _file(folder: Path, **columns: list[str]) -> CsvFile:
    """A file with these columns, ten rows long: the last cell is repeated."""
    rows = zip(*([*cells, *cells[-1:] * (10 - len(cells))] for cells in columns.values()), strict=True)
    path = folder / "rows.csv"
    path.write_text("\n".join([",".join(columns), *map(",".join, rows)]) + "\n")
    return read_csv(path)


def _dtypes(rows: GivenRows) -> dict[str, str]:
    return {field.name: field.dtype for field in rows.fields}


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "-2", "0"], [1, -2, 0]),
        (["1", "2.5", "1e3"], [1.0, 2.5, 1000.0]),
        (["1", "", "3"], [1, None, 3]),
        (["007", "12"], ["007", "12"]),
        (["true", "False"], [True, False]),
        (["nan", "1"], ["nan", "1"]),
        ([" x", "1"], [" x", "1"]),
    ],
    ids=["whole", "numbers", "missing", "codes", "booleans", "no-number", "texts"],
)
def test_a_column_has_the_type_that_all_its_cells_have(tmp_path: Path, cells: list[str], values: list[Any]) -> None:
    """Whole numbers, numbers, booleans or texts; an empty cell is missing, and a code is no number."""
    given = rows_of_file(_file(tmp_path, a=cells, y=["1"]), "y", (), (), texts=False)
    found = list(given.columns["a"])[: len(values)]
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


def test_the_estimators_columns_are_taken_in_its_order(tmp_path: Path) -> None:
    """Others are left alone; one that is missing is named."""
    file = _file(tmp_path, b=["1"], note=["x"], a=["2.5"])
    given = rows_of_file(file, "", ("a", "b"), (), texts=False)
    assert list(given.columns) == ["a", "b"]
    assert _dtypes(given) == {"a": "float", "b": "integer"}
    with pytest.raises(InvalidTrainingData, match="lacks the column c"):
        rows_of_file(file, "", ("a", "c"), (), texts=False)


def test_a_signature_says_more_than_the_cells(tmp_path: Path) -> None:
    """Whole numbers of a double are floats, digits of a string are text, and what is not required may be missing."""
    file = _file(tmp_path, a=["1"], b=["2"])
    inputs = (Input("a", "float"), Input("b", "text", required=False))
    given = rows_of_file(file, "", (), inputs, texts=False)
    assert _dtypes(given) == {"a": "float", "b": "text"}
    assert [field.missing for field in given.fields] == ["refuse", "allow"]
    assert given.columns["b"][0] == "2"


def test_the_column_of_texts(tmp_path: Path) -> None:
    """The one beside the target, or the one that is called text."""
    assert list(rows_of_file(_file(tmp_path, review=["good"], y=["1"]), "y", (), (), texts=True).columns) == ["review"]
    file = _file(tmp_path, id=["1"], text=["good"], y=["1"])
    assert list(rows_of_file(file, "y", (), (), texts=True).columns) == ["text"]
    with pytest.raises(PublishRefused, match="name it text, or name the --target"):
        rows_of_file(_file(tmp_path, a=["good"], b=["1"]), "", (), (), texts=True)


def test_a_column_without_values_is_refused(tmp_path: Path) -> None:
    """Nobody could say what goes in."""
    with pytest.raises(PublishRefused, match="the column a is empty"):
        rows_of_file(_file(tmp_path, a=[""], b=["1"]), "", (), (), texts=False)


@pytest.mark.parametrize(
    ("example", "names", "inputs", "columns"),
    [
        (({"a": 1, "b": 2.5},), (), (), {"a": [1], "b": [2.5]}),
        (([1, 2], [3, 4]), (), (Input("", "float"),) * 2, {"x0": [1.0, 3.0], "x1": [2.0, 4.0]}),
        (([1, 2],), ("p", "q"), (), {"p": [1], "q": [2]}),
        (("good", "bad"), (), (), {"text": ["good", "bad"]}),
        (("good",), (), (Input("review", "text"),), {"review": ["good"]}),
    ],
    ids=["objects", "a-tensor", "names-of-the-estimator", "texts", "a-named-text"],
)
def test_the_rows_of_an_example(
    example: tuple[Any, ...], names: tuple[str, ...], inputs: tuple[Input, ...], columns: dict[str, list[Any]]
) -> None:
    """Names come from the signature, the estimator, or their place; ranges are not taken from so few rows."""
    given = rows_of_example(example, names, inputs)
    assert given.columns == columns
    assert all(
        field.minimum is None and "minimum" in field.model_fields_set
        for field in given.fields
        if field.dtype == "float"
    )


def test_an_example_that_does_not_fit_is_refused() -> None:
    """And so is none."""
    with pytest.raises(PublishRefused, match="rows of 3 values, and the model 2 inputs"):
        rows_of_example(([1, 2, 3],), (), (Input("a", "float"), Input("b", "float")))
    with pytest.raises(PublishRefused, match="without an input_example"):
        rows_of_example((), (), ())
