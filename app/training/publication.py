"""How an order becomes a version, by what its source is: an estimator in a file, a version, a model of MLflow's."""

import tempfile
from dataclasses import replace
from importlib.metadata import version as installed
from pathlib import Path

from app.errors import PublishRefused
from app.manifest import Manifest
from app.registry.errands import Say
from app.registry.mlmodel import LoggedModel, read_mlmodel
from app.registry.sources import DirectorySource
from app.training.copying import publish_copy
from app.training.csv_files import read_csv
from app.training.estimator_files import SKOPS, feature_names, guess_task, read_estimator, takes_texts
from app.training.estimators import Given, publish_estimator, read_targets
from app.training.given_rows import rows_of_example, rows_of_file
from app.training.options import Options
from app.training.orders import Order
from app.training.placing import check_names
from app.training.staging import free_version


def carry_out(order: Order, say: Say) -> Manifest:
    """Publish, or do all of it somewhere else when nothing is to be written. Raises PublishRefused."""
    options = Options(
        aliases=order.aliases,
        target=order.target,
        recipe=order.origin or f"models publish {order.title}",
        models_dir=order.models.models_dir,
        modules=order.models.model_modules,
        types=order.models.skops_trusted_types,
        signing_key=None,  # who opens what others have made does not hold it: `sign` comes after
        say=say,
    )
    if not order.dry_run:
        return _publish(order, order.version, options)
    source = DirectorySource(options.models_dir)
    check_names(source, order.name, options)
    version = free_version(source, order.name, order.version)
    with tempfile.TemporaryDirectory(prefix="presage-dry-run-") as scratch:
        return _publish(order, version, replace(options, models_dir=Path(scratch)))


def _publish(order: Order, version: int | None, options: Options) -> Manifest:
    if order.kind == "version":
        return publish_copy(order.source, order.name, version=version, options=options)
    logged = _logged(order.source) if order.kind == "mlflow" else None
    if logged is None and order.data is None:
        raise PublishRefused("say what goes in with --data FILE.csv: rows as callers will send them")
    file = read_csv(order.data) if order.data else None
    path, skops = (logged.estimator, logged.skops) if logged else (order.source, order.source.suffix == SKOPS)
    estimator = read_estimator(path, order.models.model_modules, order.models.skops_trusted_types, skops=skops)
    names, inputs = feature_names(estimator), logged.inputs if logged else ()
    task = order.task or guess_task(estimator)
    texts = task == "text-classification" or takes_texts(estimator)
    if file is None:
        given, targets = rows_of_example(logged.example if logged else (), names, inputs), None
    else:
        given = rows_of_file(file, order.target, names, inputs, texts=texts)
        targets = read_targets(file, order.target, estimator, task)
    return publish_estimator(
        order.name,
        Given(estimator, given, targets, task, texts=texts),
        description=order.description,
        version=version,
        options=options,
    )


def _logged(folder: Path) -> LoggedModel:
    """What MLflow says of the model. Raises PublishRefused for one of another scikit-learn, before it is opened."""
    logged = read_mlmodel(folder)
    there, here = logged.scikit_learn, installed("scikit-learn")
    if there != here:
        raise PublishRefused(f"the model was fitted with scikit-learn {there}, and this is {here}: train it again")
    return logged
