"""`train`: the demo models, or a version of one of them on own data."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.config import read_settings
from app.machine import available_cpus, start_numeric_threads

if TYPE_CHECKING:
    from app.training.recipe import Recipe, Thresholds


@click.command()
@click.argument("name", required=False)
@click.option("--data", type=click.Path(path_type=Path), help="Fit on this CSV file instead of the demo data.")
@click.option("--version", type=click.IntRange(1), help="Number of the new version; the next one by default.")
@click.option("--recipe-version", type=click.IntRange(1), help="Which version of the recipe; the newest by default.")
@click.option("--alias", "aliases", multiple=True, help="Point this alias at the new version; may be repeated.")
@click.option("--positive-from", type=float, help="sentiment, with a column rating: from here on it is positive.")
@click.option("--negative-up-to", type=float, help="sentiment, with a column rating: up to here it is negative.")
@click.option("--evaluate", is_flag=True, help="sentiment: only measure on EVALUATION_DATA, and write the record.")
def train(
    *,
    name: str | None,
    data: Path | None,
    version: int | None,
    recipe_version: int | None,
    aliases: tuple[str, ...],
    positive_from: float | None,
    negative_up_to: float | None,
    evaluate: bool,
) -> None:
    """Make the demo models that do not exist yet: all of them, or those of NAME.

    With --data (or --version, or --recipe-version): fit the recipe NAME and add one version. A version that exists is
    never overwritten. Files have a header and a column for each input, beside the target; `sentiment` takes `text` with
    `label` or `rating`. Ratings on both sides of zero are split at 0.5 and -0.5, stars from 1 to 5 at 4 and 2.
    """
    own = data is not None or version is not None or recipe_version is not None
    if name is None and (own or evaluate):
        raise click.UsageError("these options need the NAME of a recipe")
    if aliases and not own:
        raise click.UsageError("--alias goes with --data, --version or --recipe-version")
    thresholds = _thresholds(positive_from, negative_up_to, data)
    settings = read_settings()
    click.echo("importing scikit-learn")
    start_numeric_threads(available_cpus())  # they count the machine's, whatever the container may use
    from app.training import runs  # noqa: PLC0415 -- seconds of imports, after the first line is out

    recipe = _recipe(name)
    if evaluate:
        if own or recipe is None or recipe.name != "sentiment":
            raise click.UsageError("--evaluate is for sentiment alone, without other options")
        runs.evaluate_sentiment(settings, click.echo)
    elif recipe is None or not own:
        runs.train_missing(settings, click.echo, *([recipe] if recipe else []))
    else:
        found = recipe.demo() if data is None else recipe.read(data, thresholds)
        chosen = _recipe_version(recipe, recipe_version)
        runs.train(runs.Order(recipe, chosen, found, version=version, aliases=aliases), settings, click.echo)


def _recipe(name: str | None) -> "Recipe | None":
    from app.training.recipes import RECIPES  # noqa: PLC0415 -- scikit-learn again

    if name is None:
        return None
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise click.UsageError(f"no recipe has that name: {known}. README.md says how to publish a model of your own")
    return RECIPES[name]


def _recipe_version(recipe: "Recipe", wanted: int | None) -> int:
    chosen = wanted or recipe.newest
    if chosen not in recipe.versions:
        known = ", ".join(map(str, recipe.versions))
        raise click.UsageError(f"the recipe {recipe.name} has the versions {known}")
    return chosen


def _thresholds(positive_from: float | None, negative_up_to: float | None, data: Path | None) -> "Thresholds | None":
    if positive_from is None and negative_up_to is None:
        return None
    if positive_from is None or negative_up_to is None or data is None:
        raise click.UsageError("--positive-from and --negative-up-to go together, and with --data")
    if negative_up_to >= positive_from:
        raise click.UsageError("--negative-up-to must be less than --positive-from")
    from app.training.recipe import Thresholds  # noqa: PLC0415 -- scikit-learn again

    return Thresholds(positive_from, negative_up_to)
