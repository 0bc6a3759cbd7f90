"""An estimator that somebody else has written to a file: opened under our rules, and asked what it is."""

import warnings
from pathlib import Path
from typing import Any

from sklearn.base import is_classifier, is_regressor
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.utils import get_tags

from app.errors import PublishRefused, VersionRefused
from app.manifest import Task
from app.registry.artefact import unpickle

SKOPS = ".skops"
SUFFIXES = (".joblib", ".pkl", ".pickle", SKOPS)


def read_estimator(path: Path, modules: tuple[str, ...], types: tuple[str, ...], *, skops: bool) -> Any:
    """The estimator in a file. Raises PublishRefused when it may not be opened, or is none."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PublishRefused(f"{path} cannot be read: {error.strerror}") from None
    try:
        estimator = _load_skops(raw, types) if skops else unpickle(raw, modules)
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


def _load_skops(raw: bytes, types: tuple[str, ...]) -> Any:
    try:
        from skops.io import get_untrusted_types, loads  # noqa: PLC0415 -- an extra
    except ModuleNotFoundError:
        raise PublishRefused("pip install skops: it is no requirement of the service (the extra mlflow)") from None
    with warnings.catch_warnings():
        warnings.simplefilter("error", InconsistentVersionWarning)
        try:
            unknown = sorted(set(get_untrusted_types(data=raw)) - set(types))
            estimator = None if unknown else loads(raw, trusted=list(types))
        except InconsistentVersionWarning as warning:
            raise VersionRefused("library_mismatch", str(warning).partition("\n")[0]) from None
        except Exception as error:  # a corrupt file raises whatever its content runs into
            raise VersionRefused("artefact_unreadable", f"{type(error).__name__}: {error}") from error
    if unknown:
        names = ",".join(unknown)
        raise VersionRefused("unknown_code", f"it contains {names}; if you trust them: SKOPS_TRUSTED_TYPES={names}")
    return estimator
