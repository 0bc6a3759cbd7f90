"""`train`: own data, and what the command says when it cannot."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli.train import train
from app.errors import InvalidTrainingData, PublishRefused
from app.registry.loader import load_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from tests.support.server import ROOT, clean_environment

HEADER = ("sepal_length", "sepal_width", "petal_length", "petal_width", "species")


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Forty flowers of two kinds in a file."""
    path = tmp_path / "flowers.csv"
    rows = [(5 + i % 3, 3, 1 + 3 * (i % 2), 0.2, ("rose", "tulip")[i % 2]) for i in range(40)]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([HEADER, *rows])
    return path


def _run(tmp_path: Path, *arguments: object) -> Result:
    return CliRunner().invoke(train, [str(a) for a in arguments], env={"MODELS_DIR": str(tmp_path / "models")})


def test_own_data_become_the_next_version(tmp_path: Path, flowers: Path) -> None:
    """The recipe is fitted on the file, the figures are printed, and what is served answers with the file's labels."""
    result = _run(tmp_path, "iris", "--data", flowers)
    assert result.exit_code == 0, result.output
    assert "iris 1: cross-validated in" in result.output
    assert "balanced_accuracy 1" in result.output
    model = load_version(DirectorySource(tmp_path / "models"), "iris", 1, Trust())
    assert model.manifest.outputs.labels == ("rose", "tulip")
    assert model.manifest.training.rows == 40
    assert model.manifest.training.data.startswith("flowers.csv")


def test_a_chosen_version_and_alias(tmp_path: Path, flowers: Path) -> None:
    """--version says which number, --alias what points to it, and a number that is taken is refused before fitting."""
    _run(tmp_path, "iris", "--data", flowers)
    result = _run(tmp_path, "iris", "--data", flowers, "--version", 7, "--alias", "canary")
    assert result.exit_code == 0, result.output
    assert DirectorySource(tmp_path / "models").aliases("iris") == {"champion": 1, "canary": 7}
    again = _run(tmp_path, "iris", "--data", flowers, "--version", 7)
    assert isinstance(again.exception, PublishRefused)
    assert "cross-validated" not in again.output


def test_one_model_of_the_demo_models(tmp_path: Path) -> None:
    """`train NAME` makes what is missing of that model, and nothing else."""
    assert _run(tmp_path, "diabetes").exit_code == 0
    assert DirectorySource(tmp_path / "models").names() == ["diabetes"]
    assert "exists already" in _run(tmp_path, "diabetes").output


def test_texts_with_ratings(tmp_path: Path) -> None:
    """The sentiment recipe takes ratings, and thresholds for them."""
    path = tmp_path / "rated.csv"
    rows = [
        (f"{word} thing {i}", rating) for i in range(20) for word, rating in (("good", 80), ("so so", 50), ("bad", 9))
    ]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "rating"), *rows])
    assert isinstance(_run(tmp_path, "sentiment", "--data", path).exception, InvalidTrainingData)
    more = ("--positive-from", 70, "--negative-up-to", 30, "--recipe-version", 1)
    result = _run(tmp_path, "sentiment", "--data", path, *more)
    assert result.exit_code == 0, result.output
    manifest = DirectorySource(tmp_path / "models").manifest("sentiment", 1)
    assert (manifest.training.rows, manifest.origin.recipe) == (40, "sentiment/1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--version", 2), "need the NAME"),
        (("roses",), "no recipe has that name: sentiment, iris, breast-cancer, diabetes"),
        (("iris", "--recipe-version", 9), "has the versions 1"),
        (("iris", "--alias", "v1"), "--alias goes with"),
        (("iris", "--evaluate"), "for sentiment alone"),
        (("sentiment", "--positive-from", 4), "go together"),
        (("sentiment", "--data", "x.csv", "--positive-from", 1, "--negative-up-to", 2), "must be less"),
        (("iris", "--version", 0), "0 is not in the range"),
    ],
)
def test_options_that_make_no_sense_together(tmp_path: Path, arguments: tuple[object, ...], said: str) -> None:
    """Each is said before anything is trained."""
    result = _run(tmp_path, *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "models").exists()


def test_a_bad_file_ends_with_one_line(tmp_path: Path, flowers: Path) -> None:
    """Exit code 1, one line on standard error, no traceback."""
    flowers.write_text(flowers.read_text().replace("tulip", "", 1))
    command = [sys.executable, "-m", "app", "train", "iris", "--data", str(flowers)]
    environment = clean_environment(MODELS_DIR=str(tmp_path / "models"))
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "presage: flowers.csv, line 3, column species: is empty\n"
