"""The demo models, by name."""

from collections.abc import Mapping

from app.training import breast_cancer, diabetes, iris, sentiment
from app.training.recipe import Recipe

RECIPES: Mapping[str, Recipe] = {
    module.RECIPE.name: module.RECIPE for module in (sentiment, iris, breast_cancer, diabetes)
}
