"""`python -m app train`: the demo models, made once by the command itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.manifest import Manifest
from app.registry.loader import load_version
from app.registry.sources import DirectorySource
from app.registry.trust import Trust
from tests.support.server import ROOT, clean_environment

EVERY_VERSION = {("sentiment", 1), ("sentiment", 2), ("iris", 1), ("breast-cancer", 1), ("diabetes", 1)}
EVERYDAY = {
    "I love this product": "positive",
    "I hate this product": "negative",
    "Works great, would buy again.": "positive",
    "Broke after two days. Garbage.": "negative",
    "The best coffee in town": "positive",
    "It doesn't work and nobody answers my emails": "negative",
}


def test_every_demo_version_is_made(demo_manifests: dict[tuple[str, int], Manifest]) -> None:
    """Each has figures, a card, a profile of its answers, and golden rows."""
    assert set(demo_manifests) == EVERY_VERSION
    for manifest in demo_manifests.values():
        assert manifest.training.evaluations
        assert manifest.card.description
        assert manifest.card.limitations
        assert 5 <= len(manifest.golden.rows) <= 15
        assert manifest.profile.prediction.count == manifest.training.rows


def test_the_aliases_are_what_the_routes_are_pinned_to(demo_models: Path) -> None:
    """`v1` stays with the first version of sentiment, and the second one is the champion after it."""
    assert DirectorySource(demo_models).aliases("sentiment") == {"champion": 2, "previous": 1, "v1": 1}
    assert DirectorySource(demo_models).aliases("iris") == {"champion": 1}


@pytest.mark.parametrize("version", [1, 2])
def test_everyday_sentences_are_the_easy_case(demo_models: Path, version: int) -> None:
    """Both versions of sentiment get them right."""
    model = load_version(DirectorySource(demo_models), "sentiment", version, Trust())
    raw = model.runtime.predict(model.pipeline.preprocess([{"text": text} for text in EVERYDAY]), len(EVERYDAY))
    assert [p.value for p in model.pipeline.postprocess(raw)] == list(EVERYDAY.values())


def test_ranges_are_in_real_units(demo_manifests: dict[tuple[str, int], Manifest]) -> None:
    """Nobody's age is -0.1: the diabetes data are unscaled, and the sex is one of two codes."""
    age, sex = demo_manifests["diabetes", 1].fields[:2]
    assert (age.minimum, age.maximum) == (19.0, 79.0)
    assert sex.categories == (1, 2)
    assert demo_manifests["diabetes", 1].artefact.container == "matrix"


def test_the_figures_are_those_of_useful_models(demo_manifests: dict[tuple[str, int], Manifest]) -> None:
    """Measured by cross-validation, far from chance."""
    figures = {key: manifest.training.evaluations[0].metrics for key, manifest in demo_manifests.items()}
    assert figures["iris", 1]["balanced_accuracy"] > 0.93
    assert figures["breast-cancer", 1]["balanced_accuracy"] > 0.94
    assert figures["diabetes", 1]["r2"] > 0.45
    assert figures["sentiment", 1]["balanced_accuracy"] > 0.75


def test_a_second_run_makes_nothing(demo_models: Path) -> None:
    """What exists is left alone, and said so."""
    before = {path: path.stat().st_mtime_ns for path in demo_models.rglob("*")}
    command = [sys.executable, "-m", "app", "train"]
    environment = clean_environment(MODELS_DIR=str(demo_models))
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.count("exists already") == len(EVERY_VERSION)
    assert {path: path.stat().st_mtime_ns for path in demo_models.rglob("*")} == before
