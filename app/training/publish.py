"""The public way from a fitted estimator to a version on disk: whole and verified, or not at all.

    from app.training.publish import publish
    publish("churn", pipeline, X, y, task="classification", description="Will this customer leave?")

What was written is loaded again exactly as a server will load it, and must answer as the estimator that was handed in.
"""

import io
from dataclasses import replace
from typing import Any

import joblib
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from app.config import SigningSettings
from app.errors import PublishRefused
from app.manifest import MANIFEST_FILE, Manifest, Task
from app.pipelines import pipeline_for
from app.registry.model_keys import read_private_key
from app.registry.skops_file import dump_skops
from app.registry.sources import DirectorySource
from app.runtimes.sklearn import SklearnRuntime
from app.training.containers import fitting_model, reference_for, valid_positions
from app.training.document import Publication, complete, draft_manifest
from app.training.options import Options
from app.training.placing import check_names, place
from app.training.samples import spread
from app.training.staging import Stage, staged
from app.training.tables import as_table

# Rows on which the reloaded estimator is compared with the one handed in; golden rows are chosen from them.
_COMPARED_ROWS = 2_000


def publish(
    name: str,
    estimator: Any,
    X: Any,
    y: Any,
    *,
    task: Task,
    description: str = "",
    version: int | None = None,
    options: Options | None = None,
) -> Manifest:
    """Write `models/<name>/<version>/` and return its manifest.

    `estimator` is fitted; `X` is what it was fitted on, in the form that callers' values have: a list of texts, a
    matrix (with `Options.field_names`), a list of dicts or a pandas DataFrame. `y` are the labels, or the numbers of a
    regression, shape (rows,). `version` is the next number by default; one that exists is never overwritten.

    Raises PublishRefused with the reason and, where there is one, the remedy; SigningRefused for a key that is none.
    """
    options = options or Options()
    X = X.tolist() if getattr(X, "ndim", 2) == 1 else X  # texts in an array or a pandas Series
    source = DirectorySource(options.models_dir)
    check_names(source, name, options)
    key = _signing_key(options)
    with staged(source, name, version) as stage:
        try:
            publication = _publication(name, stage.version, task, description, X, y, options)
            manifest = _build(stage, publication, estimator, X)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            raise PublishRefused(
                f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}".replace(": : ", ": ")
            ) from None
        options.say("proving it as a server will load it")
        place(stage, options, key)
    return manifest


def _publication(
    name: str, version: int, task: Task, description: str, X: Any, y: Any, options: Options
) -> Publication:
    table = as_table(X, options.fields, options.field_names)
    targets = np.asarray(y)
    if targets.shape != (table.size,):
        raise PublishRefused(f"X has {table.size} rows, and y the shape {targets.shape}: one target for each row")
    named = getattr(y, "name", None)
    if not options.target and isinstance(named, str):
        options = replace(options, target=named)
    return Publication(name, version, task, description, table, targets.tolist(), options)


def _build(stage: Stage, publication: Publication, estimator: Any, X: Any) -> Manifest:
    """Write both files; the manifest says what the reloaded estimator answers."""
    raw = dump_skops(estimator) if publication.options.format == "skops" else _pickled(estimator)
    regression = publication.task == "regression"
    runtime = _runtime(estimator, publication.task)
    publication.options.say("finding out what it takes, and what it answers")
    draft = draft_manifest(publication, runtime, raw)
    stage.write(draft.artefact.file, raw)
    sample = spread(publication.y, _COMPARED_ROWS, regression=regression)
    positions = valid_positions(pipeline_for(draft), publication.table, sample)
    reference = reference_for(runtime, X, positions)
    rows = [publication.table.row(i) for i in positions]
    model = fitting_model(draft, raw, publication.options.trust, rows, reference)
    manifest = complete(publication, model, positions)
    stage.write(MANIFEST_FILE, manifest.to_json())
    return manifest


def _pickled(estimator: Any) -> bytes:
    """The artefact, uncompressed: it loads faster, and the digest is over what is unpickled."""
    buffer = io.BytesIO()
    try:
        joblib.dump(estimator, buffer)
    except Exception as error:  # pickling runs code of every object inside
        raise PublishRefused(f"the estimator cannot be pickled: {type(error).__name__}: {error}") from error
    return buffer.getvalue()


def _runtime(estimator: Any, task: Task) -> SklearnRuntime:
    try:
        return SklearnRuntime(estimator, task)
    except (AttributeError, ValueError):
        raise PublishRefused(f"the estimator is not fitted, does not do {task}, or has several outputs") from None


def _signing_key(options: Options) -> Ed25519PrivateKey | None:
    """Read before anything is fitted into a version: a passphrase that is missing should not cost the work."""
    if options.signing_key is None:
        return None
    return read_private_key(options.signing_key, SigningSettings().model_key_passphrase.get_secret_value())
