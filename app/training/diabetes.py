"""`diabetes`: how far a disease will have progressed in a year, as a number; the regression among the demo models."""

from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from app.manifest import InputField
from app.training.recipe import Data, Recipe, RecipeVersion, matrix_digest, table_reader

# The source names no units for the blood serum measures, so neither do we.
_FIELDS = (
    InputField(name="age", dtype="float", description="Age in years."),
    InputField(
        name="sex",
        dtype="category",
        categories=(1, 2),
        description="Coded 1 or 2; the source does not say which is which.",
    ),
    InputField(name="bmi", dtype="float", description="Body mass index: kg / m²."),
    InputField(name="blood_pressure", dtype="float", description="Average blood pressure."),
    InputField(name="total_cholesterol", dtype="float", description="Total serum cholesterol (s1)."),
    InputField(name="ldl", dtype="float", description="Low-density lipoproteins (s2)."),
    InputField(name="hdl", dtype="float", description="High-density lipoproteins (s3)."),
    InputField(name="cholesterol_ratio", dtype="float", description="Total cholesterol / HDL (s4)."),
    InputField(
        name="log_triglycerides",
        dtype="float",
        description="Possibly the logarithm of the serum triglycerides level, says the source (s5).",
    ),
    InputField(name="blood_sugar", dtype="float", description="Blood sugar level (s6)."),
)
_TARGET = "progression"


def _demo() -> Data:
    found = load_diabetes(scaled=False)
    description = "Diabetes data of Efron et al. (2004), as scikit-learn ships them: 442 patients"
    return Data(found.data, found.target, description, matrix_digest(found.data, found.target))


RECIPE = Recipe(
    name="diabetes",
    task="regression",
    description="Estimates how far diabetes will have progressed one year after these ten measures were taken.",
    intended_use="An example of a regression. It is no medical device.",
    limitations="442 patients of one study; progression has no unit, and half its variance stays unexplained.",
    fields=_FIELDS,
    target=_TARGET,
    versions={
        1: RecipeVersion(
            build=lambda: make_pipeline(StandardScaler(), Ridge(alpha=10.0)),
            method="standardised measures and ridge regression",
        )
    },
    demo=_demo,
    read=table_reader(_FIELDS, _TARGET, regression=True),
)
