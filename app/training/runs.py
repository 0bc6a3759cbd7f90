"""Training runs: measure, fit and publish, for the demo models and for own data, with a line for each step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from app.config import Settings
from app.errors import InvalidSettings, InvalidTrainingData
from app.manifest import Evaluation, Manifest
from app.pipelines.base import RawOutput
from app.registry.errands import Say
from app.registry.sources import DirectorySource
from app.training.evaluation import evaluate, record_evaluations, recorded_evaluation
from app.training.measure import cross_validate
from app.training.options import Options
from app.training.publish import publish
from app.training.recipe import Data, Recipe, RecipeVersion
from app.training.recipes import RECIPES
from app.training.sentiment import RECIPE as SENTIMENT
from app.training.sentiment import read_texts
from app.training.staging import free_version


@dataclass(frozen=True)
class Order:
    """A version to make: which recipe on which data; `version` None takes the next number."""

    recipe: Recipe
    recipe_version: int
    data: Data
    version: int | None = None
    aliases: tuple[str, ...] = ()

    @property
    def how(self) -> RecipeVersion:
        """The recipe's version."""
        return self.recipe.versions[self.recipe_version]


def train_missing(settings: Settings, say: Say, *recipes: Recipe) -> list[Manifest]:
    """Make every demo version that does not exist yet, of these recipes or of all."""
    source = DirectorySource(settings.models.models_dir)
    made = []
    for recipe in recipes or RECIPES.values():
        for number, how in recipe.versions.items():
            if source.folder(recipe.name, number).exists():
                say(f"{recipe.name} {number}: exists already")
                continue
            order = Order(recipe, number, recipe.demo(), version=number, aliases=how.aliases)
            made.append(train(order, settings, say))
    return made


def train(order: Order, settings: Settings, say: Say) -> Manifest:
    """Measure by cross-validation, fit on all data, publish. Raises PublishRefused or InvalidTrainingData."""
    recipe, data = order.recipe, order.data
    version = free_version(DirectorySource(settings.models.models_dir), recipe.name, order.version)
    title = f"{recipe.name} {version}"
    say(f"{title}: {order.how.method}, on {data.description}")
    with _step(say, title, "cross-validated"), _unfit_data():
        measured, held_out = cross_validate(order.how.build, data, regression=recipe.task == "regression")
    with _step(say, title, "fitted"), _unfit_data():
        estimator = order.how.build().fit(data.X, data.y)
    external = recorded_evaluation(recipe.name, data.sha256, order.recipe_version)
    evaluations = (measured, external) if external else (measured,)
    with _step(say, title, "published and verified"):
        options = _options(order, settings, evaluations, held_out)
        manifest = publish(
            recipe.name,
            estimator,
            data.X,
            data.y,
            task=recipe.task,
            description=f"{recipe.description} Made of {order.how.method}.",
            version=version,
            options=options,
        )
    say(f"{title}: {_figures(measured)}, cross-validated")
    if external:
        say(f"{title}: {_figures(external)}, on {external.rows:,} rows from elsewhere")
    return manifest


def evaluate_sentiment(settings: Settings, say: Say) -> dict[int, Evaluation]:
    """Measure every sentiment recipe on EVALUATION_DATA, and write the record that training copies from."""
    path = settings.training.evaluation_data
    if path is None:
        raise InvalidSettings(["EVALUATION_DATA: is needed to evaluate, and is not set"])
    corpus, unseen = SENTIMENT.demo(), read_texts(path)
    unknown = set(unseen.y) - set(corpus.y)
    if unknown:
        raise InvalidTrainingData(f"{path.name} has labels that the corpus does not have")
    unseen = replace(unseen, description=f"{settings.training.evaluation_name}: {unseen.description}")
    evaluations = {}
    for number, how in SENTIMENT.versions.items():
        with _step(say, f"{SENTIMENT.name} {number}", "evaluated"):
            evaluations[number] = evaluate(how, corpus, unseen)
        say(f"{SENTIMENT.name} {number}: {_figures(evaluations[number])}")
    record_evaluations(SENTIMENT.name, corpus.sha256, evaluations)
    return evaluations


def _figures(evaluation: Evaluation) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in evaluation.metrics.items())


def _options(order: Order, settings: Settings, evaluations: tuple[Evaluation, ...], held_out: RawOutput) -> Options:
    recipe = order.recipe
    return Options(
        fields=recipe.fields,
        target=recipe.target,
        unit=recipe.unit,
        intended_use=recipe.intended_use,
        limitations=recipe.limitations,
        data=order.data.description,
        data_sha256=order.data.sha256,
        evaluations=evaluations,
        recipe=f"{recipe.name}/{order.recipe_version}",
        held_out=held_out,
        aliases=order.aliases,
        models_dir=settings.models.models_dir,
        modules=settings.models.model_modules,
        types=settings.models.skops_trusted_types,
        signing_key=settings.signing.model_signing_key,
    )


@contextmanager
def _step(say: Say, title: str, done: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    say(f"{title}: {done} in {time.perf_counter() - started:.1f} s")


@contextmanager
def _unfit_data() -> Iterator[None]:
    """What scikit-learn says when the data do not let it fit, such as texts without a single word."""
    try:
        yield
    except ValueError as error:
        raise InvalidTrainingData(f"the recipe cannot be fitted on these data: {error}") from error
