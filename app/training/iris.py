"""`iris`: which of three species a flower is, from four lengths; the smallest model of several classes there is."""

import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from app.manifest import InputField
from app.training.recipe import Data, Recipe, RecipeVersion, matrix_digest, table_reader

_FIELDS = tuple(
    InputField(name=f"{part}_{measure}", dtype="float", description=f"{measure.title()} of a {part}, in cm.")
    for part in ("sepal", "petal")
    for measure in ("length", "width")
)
_TARGET = "species"


def _demo() -> Data:
    found = load_iris()
    y = np.array([str(name) for name in found.target_names])[found.target]
    description = "Fisher's iris data, as scikit-learn ships them: 50 flowers of each of 3 species"
    return Data(found.data, y, description, matrix_digest(found.data, y))


RECIPE = Recipe(
    name="iris",
    task="classification",
    description="Tells three species of iris apart by the sizes of sepals and petals.",
    intended_use="A first model to call, and an example of a classifier of several classes.",
    limitations="It knows three species only, and answers one of them for any flower, or for no flower at all.",
    fields=_FIELDS,
    target=_TARGET,
    versions={
        1: RecipeVersion(
            build=lambda: make_pipeline(StandardScaler(), LogisticRegression()),
            method="standardised measures and multinomial logistic regression",
        )
    },
    demo=_demo,
    read=table_reader(_FIELDS, _TARGET),
)
