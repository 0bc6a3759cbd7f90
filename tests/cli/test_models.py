"""`models`: the table of what is on disk."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

from app.cli.models import models
from app.manifest import Evaluation
from app.training.options import Options
from app.training.publish import publish


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two versions of `toy`, the second with figures."""
    X, y = np.arange(20.0).reshape(-1, 1), np.arange(20) > 9
    figures = Evaluation(data="X", rows=20, measured="by hand", metrics={"log_loss": 0.3, "balanced_accuracy": 0.75})
    for evaluations in ((), (figures,)):
        options = Options(models_dir=tmp_path, field_names=("x",), evaluations=evaluations)
        publish("toy", LogisticRegression().fit(X, y), X, y, task="classification", options=options)
    return tmp_path


def _lines(root: Path) -> list[str]:
    result = CliRunner().invoke(models, env={"MODELS_DIR": str(root)})
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_a_line_for_each_version(root: Path) -> None:
    """Name, version, task, aliases, rows, the main figure, size, date and state, in columns that line up."""
    head, first, second = _lines(root)
    assert head.split() == ["NAME", "VERSION", "TASK", "ALIASES", "ROWS", "METRIC", "SIZE", "MADE", "SIGNED", "STATE"]
    assert first.split()[:6] == ["toy", "1", "classification", "champion", "20", "-"]
    assert second.split()[:7] == ["toy", "2", "classification", "-", "20", "balanced_accuracy", "0.750"]
    assert head.index("STATE") == first.index("ok") == second.index("ok")


def test_what_is_wrong_stands_in_the_state(root: Path) -> None:
    """A manifest that does not fit, an artefact of another size, an alias without a version: all are listed."""
    (root / "toy" / "1" / "manifest.json").write_text("{}")
    (root / "toy" / "2" / "model.joblib").write_bytes(b"short")
    _, first, second = _lines(root)
    assert "manifest_invalid" in first
    assert "digest_mismatch" in second
    (root / "toy" / "2" / "model.joblib").unlink()
    assert "artefact_unreadable" in _lines(root)[2]


def test_aliases_that_are_wrong_are_said(root: Path) -> None:
    """A file that cannot be read, or an alias that points nowhere."""
    aliases = root / "toy" / "aliases.json"
    aliases.write_text('{"champion": 9}')
    assert "champion without a version" in _lines(root)[1]
    aliases.write_text("{")
    assert "aliases_invalid" in _lines(root)[1]


def test_no_models_is_no_error(tmp_path: Path) -> None:
    """The command says how to make some."""
    assert "python -m app train" in _lines(tmp_path)[0]
