"""`breast-cancer`: malignant or benign, from thirty measures of cell nuclei; a forest, which is slow."""

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier

from app.manifest import InputField
from app.training.recipe import Data, Recipe, RecipeVersion, matrix_digest, table_reader

_MEASURES = {
    "radius": "the radius: mean distance from the centre to points on the outline",
    "texture": "the texture: standard deviation of grey values",
    "perimeter": "the perimeter",
    "area": "the area",
    "smoothness": "the smoothness: local variation in the lengths of radii",
    "compactness": "the compactness: perimeter² / area - 1",
    "concavity": "the concavity: how deep the inward curves of the outline are",
    "concave_points": "the number of inward curves of the outline",
    "symmetry": "the symmetry",
    "fractal_dimension": "the fractal dimension: the coastline approximation - 1",
}
# In the order of the data set: ten means, ten standard errors, ten extremes.
_STATISTICS = {
    "mean": "Mean over the nuclei of",
    "error": "Standard error of the mean of",
    "worst": "Mean of the three largest values of",
}
_FIELDS = tuple(
    InputField(name=f"{statistic}_{measure}", dtype="float", description=f"{phrase} {meaning}.")
    for statistic, phrase in _STATISTICS.items()
    for measure, meaning in _MEASURES.items()
)
_TARGET = "diagnosis"


def _demo() -> Data:
    found = load_breast_cancer()
    y = np.array([str(name) for name in found.target_names])[found.target]
    description = "Breast Cancer Wisconsin (Diagnostic), as scikit-learn ships it: 569 fine needle aspirates"
    return Data(found.data, y, description, matrix_digest(found.data, y))


RECIPE = Recipe(
    name="breast-cancer",
    task="classification",
    description="Tells malignant from benign by measures of cell nuclei in a digitised fine needle aspirate.",
    intended_use="An example of a forest and of a model with many inputs. It is no medical device.",
    limitations="569 samples of one American hospital, from before 1995. Probabilities of a forest are not calibrated.",
    fields=_FIELDS,
    target=_TARGET,
    versions={
        1: RecipeVersion(
            build=lambda: RandomForestClassifier(n_estimators=100, random_state=0),
            method="a random forest of 100 trees",
        )
    },
    demo=_demo,
    read=table_reader(_FIELDS, _TARGET),
)
