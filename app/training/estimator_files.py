"""An estimator that somebody else has written to a file: opened under our rules, and asked what it is."""

from pathlib import Path
from typing import Any

from sklearn.base import is_classifier, is_regressor
from sklearn.utils import get_tags

from app.errors import PublishRefused, VersionRefused
from app.manifest import ArtefactFile, Task
from app.registry import artefact
from app.registry.trust import Trust

SKOPS = ".skops"
SUFFIXES = (".joblib", ".pkl", ".pickle", SKOPS)


def read_estimator(path: Path, modules: tuple[str, ...], types: tuple[str, ...], *, skops: bool) -> Any:
    """The estimator in a file. Raises PublishRefused when it may not be opened, or is none."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PublishRefused(f"{path} cannot be read: {error.strerror}") from None
    try:
        file: ArtefactFile = "model.skops" if skops else "model.joblib"
        estimator = artefact.read_estimator(raw, file, Trust(modules, types))
    except VersionRefused as error:
        if isinstance(error.__cause__, MemoryError):
            raise error.__cause__ from None
        raise PublishRefused(f"{path.name}: {error.refusal.detail}") from None
    if not hasattr(estimator, "predict"):
        raise PublishRefused(f"{path.name} holds a {type(estimator).__name__}, without predict")
    return estimator


def guess_task(estimator: Any) -> Task:
    """What it does, by what it says of itself. Raises PublishRefused when that is neither of what can be served."""
    if is_classifier(estimator):
        return "text-classification" if takes_texts(estimator) else "classification"
    if is_regressor(estimator):
        return "regression"
    raise PublishRefused(
        f"a {type(estimator).__name__} says neither that it classifies nor that it regresses: use --task"
    )


def takes_texts(estimator: Any) -> bool:
    """Whether it is fitted on a list of texts, as a pipeline is that begins with a vectoriser."""
    tags = get_tags(_first_step(estimator)).input_tags
    return bool(tags.string and not tags.two_d_array)


def feature_names(estimator: Any) -> tuple[str, ...]:
    """The columns that it was fitted on by name; none when it was fitted on a matrix."""
    names = getattr(estimator, "feature_names_in_", None)
    return () if names is None else tuple(map(str, names))


def _first_step(estimator: Any) -> Any:
    """The estimator that sees the input first, whatever it is wrapped in."""
    while True:
        if getattr(estimator, "steps", None):
            estimator = estimator.steps[0][1]
        elif getattr(estimator, "transformer_list", None):
            estimator = estimator.transformer_list[0][1]
        elif getattr(estimator, "calibrated_classifiers_", None):
            estimator = estimator.calibrated_classifiers_[0].estimator
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif hasattr(estimator, "estimator_"):
            estimator = estimator.estimator_
        else:
            return estimator
