"""Recipes: what they read, what they say of files that they cannot use, and how they measure."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import balanced_accuracy_score

from app.errors import InvalidTrainingData
from app.training.measure import classification_metrics, cross_validate
from app.training.recipe import Data, Thresholds
from app.training.recipes import RECIPES

IRIS_HEADER = ("sepal_length", "sepal_width", "petal_length", "petal_width", "species")


def _write(path: Path, rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def _iris_rows(count: int = 20) -> list[Sequence[Any]]:
    return [(5 + i % 3, 3, 1 + i % 2, 0.2, ("setosa", "virginica")[i % 2]) for i in range(count)]


@pytest.mark.parametrize("name", RECIPES)
def test_the_demo_data_fit_the_fields(name: str) -> None:
    """Every recipe has a column for each of its fields, an answer for each row, and a digest that does not change."""
    recipe = RECIPES[name]
    data = recipe.demo()
    assert len(data.X) == len(data.y) >= 100
    if recipe.task != "text-classification":
        assert data.X.shape[1] == len(recipe.fields)
    assert all(field.description for field in recipe.fields)
    assert data.sha256 == recipe.demo().sha256


@pytest.mark.parametrize("name", ["iris", "breast-cancer", "diabetes"])
def test_demo_data_written_as_csv_are_read_back(name: str, tmp_path: Path) -> None:
    """A file of own data has the recipe's names as its header, in any order, beside columns that nobody asked for."""
    recipe = RECIPES[name]
    data = recipe.demo()
    header = [recipe.target, *(field.name for field in recipe.fields), "note"]
    rows = [[target, *row, "x"] for row, target in zip(data.X.tolist(), data.y.tolist(), strict=True)]
    read = recipe.read(_write(tmp_path / "own.csv", [header, *rows]), None)
    assert (read.X == data.X).all()
    assert (read.y == data.y).all()
    assert read.description.startswith("own.csv")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "own.csv is empty"),
        ([IRIS_HEADER], "has 0 rows, too few"),
        ([IRIS_HEADER, *_iris_rows(9)], "has 9 rows, too few"),
        ([("sepal_length", "species"), *[(1, "a")] * 10], "lacks the columns sepal_width, petal_length, petal_width"),
        ([IRIS_HEADER[:4], *[(1, 2, 3, 4)] * 10], "lacks the column species"),
        ([(*IRIS_HEADER, "species"), *[(1, 2, 3, 4, "a", "b")] * 10], "two columns of the same name"),
        ([IRIS_HEADER, *_iris_rows(), (1, "wide", 1, 1, "setosa")], "line 22, column sepal_width: is not a number"),
        ([IRIS_HEADER, *_iris_rows(), (1, "", 1, 1, "setosa")], "line 22, column sepal_width: is empty"),
        ([IRIS_HEADER, *_iris_rows(), (1, "nan", 1, 1, "setosa")], "line 22, column sepal_width: is not a finite"),
        ([IRIS_HEADER, *_iris_rows(), (1, "1e999", 1, 1, "setosa")], "line 22, column sepal_width: is not a finite"),
        ([IRIS_HEADER, *_iris_rows(), (1, 2, 3, 4, " ")], "line 22, column species: is empty"),
        ([IRIS_HEADER, *_iris_rows(), (1, 2, 3)], "line 22: has 3 cells, and the header 5 columns"),
        ([IRIS_HEADER, *[(1, 2, 3, 4, "setosa")] * 20], "has only one label"),
        ([IRIS_HEADER, *_iris_rows(), (1, 2, 3, 4, "rare")], "1 labels with fewer than 5 rows"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path: Path, rows: Any, said: str) -> None:
    """Missing columns by name, bad cells by line and column, and never the cell itself."""
    with pytest.raises(InvalidTrainingData) as caught:
        RECIPES["iris"].read(_write(tmp_path / "own.csv", rows), None)
    assert said in str(caught.value)
    assert "wide" not in str(caught.value).replace("sepal_width", "")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"text,label\ncaf\xe9,good\n", "line 2: is not UTF-8"), (b'text,label\n"open,good\n', "unexpected end of data")],
)
def test_a_file_that_is_no_csv_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    """Another encoding, or a quote that is never closed."""
    path = tmp_path / "own.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidTrainingData, match=said):
        RECIPES["sentiment"].read(path, None)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The message says what the operating system says."""
    with pytest.raises(InvalidTrainingData, match="No such file"):
        RECIPES["iris"].read(tmp_path / "nowhere.csv", None)


def test_a_category_outside_the_recipe_is_refused(tmp_path: Path) -> None:
    """The sex of a patient is coded 1 or 2; the message lists what is possible, not what was found."""
    recipe = RECIPES["diabetes"]
    header = [field.name for field in recipe.fields] + [recipe.target]
    rows = [[50, 1, *range(8), 100]] * 10 + [[50, 3, *range(8), 100]]
    with pytest.raises(InvalidTrainingData, match="line 12, column sex: is none of 1, 2"):
        recipe.read(_write(tmp_path / "own.csv", [header, *rows]), None)


def test_thresholds_are_for_ratings(tmp_path: Path) -> None:
    """A recipe without ratings says so instead of ignoring them."""
    with pytest.raises(InvalidTrainingData, match="for the sentiment recipe"):
        RECIPES["iris"].read(tmp_path / "own.csv", Thresholds(1, 0))


def test_line_ends_do_not_change_the_digest(tmp_path: Path) -> None:
    """A checkout with other line ends has the same data, so the same figures belong to it."""
    unix = _write(tmp_path / "own.csv", [IRIS_HEADER, *_iris_rows()])
    content = unix.read_bytes().replace(b"\r\n", b"\n")
    digests = set()
    for raw in (content, content.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + content):
        unix.write_bytes(raw)
        digests.add(RECIPES["iris"].read(unix, None).sha256)
    assert len(digests) == 1


def test_figures_are_of_answers_to_unseen_rows() -> None:
    """A classifier that memorises labels, and cannot know any, measures as a coin; repeated, it measures the same."""
    X = np.arange(200.0).reshape(-1, 1)
    y = np.array(["a", "b"] * 100)
    data = Data(X, y, "alternating", "0" * 64)

    def build() -> Any:
        return DummyClassifier(strategy="stratified", random_state=0)

    evaluation, held_out = cross_validate(build, data, regression=False)
    assert evaluation.metrics["balanced_accuracy"] == pytest.approx(0.5, abs=0.1)
    assert evaluation.metrics["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(y, np.array(["a", "b"])[held_out.classes]), abs=1e-4
    )
    assert cross_validate(build, data, regression=False)[0] == evaluation


def test_neighbours_stay_on_one_side_of_a_fold() -> None:
    """Rows of one group are answered by an estimator that saw none of the group."""
    groups = np.arange(100) // 10
    seen: list[set[int]] = []

    class Spy(DummyClassifier):  # type: ignore[misc]
        def fit(self, X: Any, y: Any, **more: Any) -> Any:
            seen.append(set(groups[X[:, 0].astype(int)].tolist()))
            return super().fit(X, y, **more)

        def predict_proba(self, X: Any) -> Any:
            assert not seen[-1] & set(groups[X[:, 0].astype(int)].tolist())
            return super().predict_proba(X)

    data = Data(np.arange(100.0).reshape(-1, 1), np.array(["a", "b"] * 50), "pairs", "0" * 64, groups)
    evaluation, _ = cross_validate(Spy, data, regression=False)
    assert len(seen) == 5
    assert "neighbouring rows kept together" in evaluation.measured


def test_two_classes_have_two_figures_more() -> None:
    """The area under the curve and Brier's score have one meaning for two classes only."""
    shares = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    classes = np.array(["no", "yes"])
    found = classification_metrics(np.array(["no", "yes", "yes"]), classes, shares)
    assert found["accuracy"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["roc_auc"] == 1.0
    assert found["brier_score"] == pytest.approx((0.1**2 + 0.2**2 + 0.6**2) / 3, abs=1e-4)
    three = classification_metrics(np.array([0, 1, 2]), np.arange(3), np.eye(3))
    assert set(three) == {"accuracy", "balanced_accuracy", "log_loss"}
