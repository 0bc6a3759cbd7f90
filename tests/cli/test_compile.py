"""`compile`: the table of a model's forms."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli.compile import compile as command
from tests.support.demo import MODULES


def _run(models_dir: Path, *arguments: str) -> Result:
    environment = {"MODELS_DIR": str(models_dir), "MODEL_MODULES": MODULES}
    return CliRunner().invoke(command, arguments, env=environment)


def test_each_form_has_a_line_with_its_figures(models_dir: Path) -> None:
    """What it costs at three sizes of call, how far it is off, and what it was chosen for."""
    result = _run(models_dir, "iris")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("iris 1 is executed by: folded linear")
    assert lines[1].split() == [
        *("FORM", "1", "ROW", "64", "ROWS", "1,000", "ROWS", "DIFFERENCE", "LABELS", "CHOSEN", "FOR"),
    ]
    folded = next(line for line in lines if line.startswith("folded linear"))
    assert "equal" in folded
    assert lines[-1].startswith("scikit-learn")
    assert any("not used: LogisticRegression has no trees" in line for line in lines)
    assert "iris 1: comparing folded linear" in result.stderr


@pytest.mark.parametrize(("wanted", "number"), [("", 2), ("@1", 1), ("@v1", 1), ("@champion", 2)])
def test_a_version_is_a_number_or_an_alias(models_dir: Path, wanted: str, number: int) -> None:
    """Without one, the champion."""
    assert _run(models_dir, f"sentiment{wanted}").stdout.startswith(f"sentiment {number} is executed by: folded text")


def test_a_model_without_a_form_says_so(models_dir: Path) -> None:
    """Scikit-learn answers, and the lines say why nothing else does."""
    result = _run(models_dir, "brittle")
    assert result.stdout.startswith("brittle 1 is executed by: scikit-learn")
    assert "not used: Brittle is no linear model" in result.stdout


@pytest.mark.parametrize(("wanted", "said"), [("nobody", "no model nobody"), ("iris@9", "no version 9; there are: 1")])
def test_what_does_not_exist_is_named(models_dir: Path, wanted: str, said: str) -> None:
    """With what there is."""
    result = _run(models_dir, wanted)
    assert result.exit_code == 2
    assert said in result.stderr
