"""`models publish`: a file, a version from elsewhere, or a model that is registered with MLflow becomes a version."""

import json
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import get_args

import click

from app.cli.models.opened import operator
from app.config import Settings, read_settings
from app.manifest import Manifest, Task
from app.registry.aliases import CHAMPION
from app.registry.mlflow_source import MlflowSource, is_followed, is_registered
from app.registry.sources import DirectorySource
from app.telemetry.logs import configure_logs
from app.training.delivery import deliver
from app.training.orders import Order, kind_of
from app.training.registered import Follower, publish_registered

_File = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.argument("source")
@click.option("--name", required=True, help="Name of the model: a new one, or one that has versions.")
@click.option("--data", type=_File, help="CSV file of rows as callers will send them; an estimator's file needs it.")
@click.option("--target", default="", help="Column of --data with what is true: the version's figures are about it.")
@click.option("--task", type=click.Choice(get_args(Task)), help="What it does; without it the estimator is asked.")
@click.option("--description", default="", help="What people should know of it.")
@click.option("--alias", "aliases", multiple=True, help="Point this alias at the new version; may be repeated.")
@click.option("--version", type=click.IntRange(1, 10**9), help="Number of the new version; the next one by default.")
@click.option("--dry-run", is_flag=True, help="Do everything, and leave MODELS_DIR as it is.")
@click.option(
    "--follow",
    "every",
    type=click.FloatRange(1),
    metavar="SECONDS",
    help="Stay, look so often what models:/NAME@ALIAS stands for, and publish what is new.",
)
def publish(*, source: str, every: float | None, **wishes: object) -> None:
    """Make a new version of the model NAME out of SOURCE, proven as a server will load it.

    SOURCE is a file of a fitted estimator (joblib, pickle or skops), the folder of a version, a folder in MLflow's
    format, or models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN/PATH of the MLflow at MLFLOW_TRACKING_URI. The
    champion stays what it is, unless this is the first version, or --alias champion is given.
    """
    if wishes["target"] and wishes["data"] is None:
        raise click.UsageError("--target is a column of --data")
    if every is not None and (wishes["version"] or wishes["dry_run"] or not is_followed(source)):
        raise click.UsageError("--follow is for models:/NAME@ALIAS, without --version and --dry-run")
    settings = read_settings()
    # Standard output belongs to the steps.
    configure_logs(level=settings.server.log_level, json=settings.json_logs, stream=sys.stderr)
    kind = "mlflow" if is_registered(source) else kind_of(Path(source))
    order = Order.model_validate(
        {
            **wishes,
            "source": Path(source).absolute(),
            "kind": kind,
            "models": settings.models.model_copy(update={"models_dir": settings.models.models_dir.absolute()}),
            "cpu_seconds": settings.publishing.publish_seconds,
            "by": operator(),
        }
    )
    if not is_registered(source):
        _end(order, deliver(order, settings, _step), settings)
        return
    with MlflowSource(settings.publishing) as mlflow:
        if every is None:
            registered = mlflow.resolve(source, _step)
            _end(order, publish_registered(order, registered, mlflow, settings, _step), settings)
        else:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # what has been begun is taken away on the way out
            follower = Follower(source, order, mlflow, settings, click.echo)
            while True:
                follower.look()
                time.sleep(every)


def _step(step: str) -> None:
    click.echo(f"{step} …")


def _end(order: Order, manifest: Manifest, settings: Settings) -> None:
    """What there is now, and what may come next."""
    title = f"{manifest.name} {manifest.version}"
    if order.dry_run:
        click.echo(f"{title}: could be published; nothing was written")
        return
    source = DirectorySource(settings.models.models_dir)
    click.echo(f"{title}: published in {source.folder(manifest.name, manifest.version)}")
    inputs = json.dumps({"inputs": manifest.golden.rows[0].inputs}, ensure_ascii=False)
    url = f"http://localhost:{settings.server.port}/v2/predict/{manifest.name}?version={manifest.version}"
    heads = "-H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json'"
    click.echo(f"try it:  curl '{url}' {heads} -d {shlex.quote(inputs)}")
    if source.aliases(manifest.name).get(CHAMPION) == manifest.version:
        click.echo("it is the champion: callers who name no version get it")
    else:
        click.echo(f"promote it:  python -m app models promote {title}")
