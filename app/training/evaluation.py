"""The evaluation record: how the sentiment recipes do on real text that nobody fitted them on.

The figures cost a file that the project does not have, so they are measured where it is and committed. They belong to
one corpus: training copies them into a manifest only when the corpus has the very digest they were measured with.
"""

from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from app.manifest import Evaluation
from app.training.measure import classification_metrics
from app.training.recipe import Data, RecipeVersion

_FOLDER = Path(__file__).parent / "evaluations"
# Digest of the corpus → version of the recipe → figures.
_Record = dict[str, dict[int, Evaluation]]
_document: TypeAdapter[_Record] = TypeAdapter(_Record)


def recorded_evaluation(
    name: str, corpus_sha256: str, recipe_version: int, folder: Path = _FOLDER
) -> Evaluation | None:
    """The figures for a recipe on exactly that corpus, if they were ever measured."""
    path = folder / f"{name}.json"
    record = _document.validate_json(path.read_bytes()) if path.exists() else {}
    return record.get(corpus_sha256, {}).get(recipe_version)


def record_evaluations(
    name: str, corpus_sha256: str, evaluations: dict[int, Evaluation], folder: Path = _FOLDER
) -> Path:
    """Replace the record; figures of an earlier corpus go, since nothing can be trained on it any more."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_bytes(_document.dump_json({corpus_sha256: evaluations}, indent=2) + b"\n")
    return path


def evaluate(version: RecipeVersion, corpus: Data, unseen: Data) -> Evaluation:
    """Fit on the corpus, and measure on `unseen`, whose labels must be the corpus's."""
    estimator = version.build().fit(corpus.X, corpus.y)
    probabilities = estimator.predict_proba(unseen.X)
    return Evaluation(
        data=unseen.description,
        rows=len(unseen.y),
        measured=f"fitted on {corpus.description}, and on nothing of this file",
        metrics=classification_metrics(unseen.y, np.asarray(estimator.classes_), probabilities),
    )
