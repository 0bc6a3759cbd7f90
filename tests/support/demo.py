"""The models that API tests are served by: small, quick to fit, published as anybody would."""

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_iris
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from app.training.options import Options
from app.training.publish import publish
from tests.support.estimators import Brittle, Slow

MODULES = "tests.support.estimators"

_GOOD = ("I love this", "it works great", "a lovely product", "fine and sturdy", "very happy", "excellent sound")
_BAD = ("I hate this", "it broke at once", "a terrible product", "cheap and flimsy", "very sad", "awful sound")


def publish_demo_models(root: Path) -> None:
    """Sentiment 1 (`v1`) and 2 (`champion`), iris, a regression, and two that misbehave."""
    _publish_sentiment(root)
    _publish_iris(root)
    numbers = np.arange(20.0).reshape(-1, 1)
    options: Any = {"models_dir": root, "modules": (MODULES,), "field_names": ("x",)}
    regression = Ridge().fit(numbers, numbers[:, 0] * 2)
    publish("double", regression, numbers, numbers[:, 0] * 2, task="regression", options=Options(unit="m", **options))
    labels = np.array(["less", "more"] * 5)
    small = numbers[:10]
    publish("brittle", Brittle().fit(small, labels), small, labels, task="classification", options=Options(**options))
    instant = np.zeros((10, 1))
    publish("slow", Slow().fit(instant, None), instant, np.zeros(10), task="regression", options=Options(**options))


def _publish_sentiment(root: Path) -> None:
    texts = [*_GOOD, *_BAD] * 2
    labels = (["positive"] * len(_GOOD) + ["negative"] * len(_BAD)) * 2
    for version, alias in ((1, "v1"), (2, "champion")):
        estimator = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10.0 * version)).fit(texts, labels)
        options = Options(target="sentiment", aliases=(alias,), models_dir=root)
        publish("sentiment", estimator, texts, labels, task="text-classification", options=options)


def _publish_iris(root: Path) -> None:
    data = load_iris()
    names = data.target_names[data.target]
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(data.data, names)
    options = Options(field_names=tuple(data.feature_names), target="species", unit="", models_dir=root)
    publish("iris", estimator, data.data, names, task="classification", description="Irises.", options=options)
