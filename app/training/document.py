"""The manifest of a version in the making: first what the data say, then what the reloaded estimator answers."""

import hashlib
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from app import __version__
from app.errors import PublishRefused
from app.manifest import (
    ARTEFACT_FILE,
    SKOPS_FILE,
    Artefact,
    Card,
    Golden,
    GoldenRow,
    Label,
    Manifest,
    Origin,
    Outputs,
    Profile,
    Task,
    Training,
    Versions,
)
from app.pipelines.base import Prediction, to_json
from app.registry.loader import LoadedModel
from app.runtimes.sklearn import SklearnRuntime
from app.training.containers import candidates
from app.training.options import Options
from app.training.profile import category_profile, field_profile, number_profile
from app.training.samples import golden_rows
from app.training.tables import TrainingTable

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Publication:
    """What is being published."""

    name: str
    version: int
    task: Task
    description: str
    table: TrainingTable
    y: Sequence[Any]
    options: Options


def draft_manifest(publication: Publication, runtime: SklearnRuntime, raw: bytes) -> Manifest:
    """The manifest but for what needs the reloaded estimator: container, golden rows and the profile of answers."""
    table, options = publication.table, publication.options
    return Manifest(
        name=publication.name,
        version=publication.version,
        task=publication.task,
        fields=table.fields,
        outputs=_outputs(publication, runtime),
        artefact=Artefact(
            file=SKOPS_FILE if options.format == "skops" else ARTEFACT_FILE,
            sha256=hashlib.sha256(raw).hexdigest(),
            size=len(raw),
            container=candidates(table.fields)[0],
        ),
        versions=_versions(),
        training=Training(
            data=options.data,
            rows=table.size,
            sha256=options.data_sha256 or _digest(table, publication.y),
            evaluations=options.evaluations,
        ),
        golden=Golden(rows=(GoldenRow(inputs={}, prediction=0),)),
        profile=Profile(
            inputs={field.name: field_profile(field, table.columns[field.name]) for field in table.fields},
            prediction=category_profile(()),
        ),
        card=Card(
            description=publication.description, intended_use=options.intended_use, limitations=options.limitations
        ),
        origin=Origin(created_at=datetime.now(UTC), code=_code(), recipe=options.recipe),
    )


def complete(publication: Publication, model: LoadedModel, positions: Sequence[int]) -> Manifest:
    """The whole manifest; `positions` are the rows to ask the reloaded estimator for."""
    table = publication.table
    rows = [table.row(i) for i in positions]
    answers = model.pipeline.postprocess(model.runtime.predict(model.pipeline.preprocess(rows), len(rows)))
    held_out = publication.options.held_out
    reference = answers if held_out is None else model.pipeline.postprocess(held_out)
    return model.manifest.model_copy(
        update={
            "golden": Golden(rows=golden_rows(table, positions, answers)),
            "profile": _profile(model.manifest.profile, reference),
        }
    )


def _profile(inputs: Profile, answers: Sequence[Prediction]) -> Profile:
    values = [answer.value for answer in answers]
    if all(isinstance(value, float) for value in values):
        prediction: Any = number_profile([float(value) for value in values])
    else:
        prediction = category_profile(values)
    scores = [max(answer.probabilities.values()) for answer in answers if answer.probabilities]
    return inputs.model_copy(update={"prediction": prediction, "score": number_profile(scores) if scores else None})


def _outputs(publication: Publication, runtime: SklearnRuntime) -> Outputs:
    options, y = publication.options, publication.y
    if publication.task == "regression":
        return Outputs(
            target=options.target or "value", unit=options.unit, minimum=float(min(y)), maximum=float(max(y))
        )
    return Outputs(
        target=options.target or "label",
        unit=options.unit,
        labels=_labels(runtime.classes, options.labels),
        probabilities=runtime.has_probabilities,
    )


def _labels(classes: Sequence[Any], given: tuple[Label, ...]) -> tuple[Label, ...]:
    if given and len(given) != len(classes):
        raise PublishRefused(f"{len(given)} labels are given, and the estimator has {len(classes)} classes")
    labels = tuple(int(c) if isinstance(c, float) and c.is_integer() else c for c in given or classes)
    if not all(isinstance(label, bool | int | str) for label in labels):
        raise PublishRefused("the estimator's classes are neither texts, whole numbers nor booleans: pass labels")
    return labels


def _versions() -> Versions:
    return Versions(
        python=platform.python_version(),
        scikit_learn=installed("scikit-learn"),
        numpy=installed("numpy"),
        scipy=installed("scipy"),
        joblib=installed("joblib"),
    )


def _digest(table: TrainingTable, y: Sequence[Any]) -> str:
    return hashlib.sha256(to_json([table.columns, list(y)])).hexdigest()


def _code() -> str:
    """The project's version and, in a checkout, its commit."""
    git = shutil.which("git")
    if git is None or not (_ROOT / ".git").exists():
        return __version__
    command = [git, "-C", str(_ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)  # noqa: S603 -- fixed words
    return f"{__version__} ({found.stdout.strip()})" if found.returncode == 0 else __version__
