"""What a recipe is: which data, which estimators, and what people should know about the result."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import InvalidTrainingData
from app.manifest import InputField, Task
from app.pipelines.base import to_json
from app.training.csv_files import CsvFile, Line, read_csv

# Fewer of a label than folds of cross-validation, and some fold would measure nothing of it.
LEAST_OF_A_LABEL = 5


@dataclass(frozen=True, eq=False)
class Data:
    """`X`: texts, or a matrix of shape (rows, fields); `y`: labels or numbers, shape (rows,).

    `groups`: rows of one group are never on both sides of a fold; None where rows are independent.
    """

    X: Any
    y: Any
    description: str
    sha256: str
    groups: Any = None


@dataclass(frozen=True)
class Thresholds:
    """From which rating on a text is positive, and up to which it is negative; what lies between is left out."""

    positive_from: float
    negative_up_to: float


@dataclass(frozen=True)
class RecipeVersion:
    """An estimator, not yet fitted; `method` describes it to people, `aliases` are for the demo version."""

    build: Callable[[], Any]
    method: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One demo model: each of its versions is a recipe for own data, too."""

    name: str
    task: Task
    description: str
    intended_use: str
    limitations: str
    fields: tuple[InputField, ...]
    target: str
    unit: str = ""
    versions: Mapping[int, RecipeVersion]
    demo: Callable[[], Data]
    read: Callable[[Path, Thresholds | None], Data]

    @property
    def newest(self) -> int:
        """The version that own data are fitted with unless another is asked for."""
        return max(self.versions)


def table_reader(
    fields: tuple[InputField, ...], target: str, *, regression: bool = False
) -> Callable[[Path, Thresholds | None], Data]:
    """A reader of CSV files with a column for each field and one for the target."""

    def read(path: Path, thresholds: Thresholds | None) -> Data:
        if thresholds is not None:
            raise InvalidTrainingData("thresholds of a rating are for the sentiment recipe")
        file = read_csv(path)
        file.require([*(field.name for field in fields), target])
        X = np.array([[_value(line, field) for field in fields] for line in file.lines])
        y = np.array([line.number_in(target) if regression else line.text_in(target) for line in file.lines])
        if not regression:
            check_labels(file, y)
        return Data(X, y, f"{file.name}, {len(y):,} rows", file.sha256)

    return read


def check_labels(file: CsvFile, y: Any) -> None:
    """Raises InvalidTrainingData unless there are two labels or more, each often enough to be measured."""
    labels, counts = np.unique(y, return_counts=True)
    if labels.size < 2:  # noqa: PLR2004 -- telling one thing apart is nothing to learn
        raise InvalidTrainingData(f"{file.name} has only one label; a classifier needs two or more")
    if counts.min() < LEAST_OF_A_LABEL:
        rare = int((counts < LEAST_OF_A_LABEL).sum())
        raise InvalidTrainingData(
            f"{file.name} has {rare} labels with fewer than {LEAST_OF_A_LABEL} rows, too few to measure with"
        )


def _value(line: Line, field: InputField) -> float:
    value = line.number_in(field.name)
    if field.categories is not None and value not in field.categories:
        raise line.wrong(field.name, f"is none of {', '.join(map(str, field.categories))}")
    return value


def matrix_digest(X: Any, y: Any) -> str:
    """The digest of data that have no file: shape, numbers and targets, alike on every machine."""
    return hashlib.sha256(to_json([X.tolist(), y.tolist()])).hexdigest()
