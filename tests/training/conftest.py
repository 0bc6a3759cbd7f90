"""What the tests of training share: people, and a package of somebody's own."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from app.config import Settings
from app.manifest import Manifest
from app.registry.sources import DirectorySource

OWN_CODE = '''
import os

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin


class Doubler(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def transform(self, X):
        return np.asarray(X, dtype=float) * 2


class NeedsNames(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def transform(self, X):
        return X[["age"]].to_numpy(dtype=float)


class Always(ClassifierMixin, BaseEstimator):
    """Answers the first class; what befalls it on the way to disk and back is in `fate`."""

    def __init__(self, fate=""):
        self.fate = fate

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.repeat(self.classes_[0], len(X))

    def __getstate__(self):
        if self.fate == "does not pickle":
            raise RuntimeError("planted")
        return super().__getstate__()

    def __setstate__(self, state):
        super().__setstate__(state)
        if self.fate == "kills its loader":
            os._exit(7)
        if self.fate == "answers otherwise":
            self.classes_ = self.classes_[::-1]
'''


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the importable package `own_code`."""
    root = tmp_path / "packages"
    root.mkdir()
    (root / "own_code.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(str(root))
    yield root
    sys.modules.pop("own_code", None)


@pytest.fixture
def people() -> pd.DataFrame:
    """240 people: whole numbers, floats with gaps, texts of few kinds, and booleans."""
    random = np.random.default_rng(0)
    ages, cities = random.integers(18, 80, 240), random.choice(["Bern", "Oslo", "Rome"], 240)
    frame: dict[str, Any] = {
        "age": ages,
        "income": np.where(ages % 7 == 0, np.nan, random.normal(30_000, 5_000, 240)),
        "city": cities,
        "member": random.random(240) < 0.5,
    }
    return pd.DataFrame(frame)


@pytest.fixture
def stays(people: pd.DataFrame) -> Any:
    """Whether each of them stays, which depends on age and city."""
    return np.where(people["age"] + np.where(people["city"] == "Oslo", 20, 0) > 50, "stays", "leaves")


@pytest.fixture(scope="session")
def demo_manifests(demo_models: Path) -> dict[tuple[str, int], Manifest]:
    """Their manifests by name and version."""
    source = DirectorySource(demo_models)
    return {(name, v): source.manifest(name, v) for name in source.names() for v in source.versions(name)}


@pytest.fixture(scope="session")
def evaluation_data() -> Path:
    """The file of real texts, where there is one."""
    path = Settings().training.evaluation_data
    if path is None:
        pytest.skip("EVALUATION_DATA is not set: the project does not have the file")
    return path
