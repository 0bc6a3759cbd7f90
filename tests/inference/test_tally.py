"""The tally counts rows by label as the manifest has it, and failures by their code."""

from app.errors import FieldError
from app.inference.tally import Tally
from app.manifest import Outputs
from app.pipelines.base import Prediction
from app.telemetry.metrics import Metrics
from tests.support.manifests import NUMBER, make_manifest
from tests.support.versions import NUMBER as A_NUMBER

FAILED = FieldError("model_failed", "the model failed on this row")
REQUIRED = FieldError("required", "is required", field="x")


def _counted(metrics: Metrics, family: str, label: str) -> dict[str, float]:
    """By that label, of the one version that there is."""
    (found,) = getattr(metrics, family).collect()
    return {sample.labels[label]: sample.value for sample in found.samples if sample.labels["version"] == "1"}


def test_labels_that_python_takes_for_equal_are_counted_apart() -> None:
    """1, True and "1" in one batch or each alone; what they are called in the metric is how they are written."""
    metrics = Metrics()
    tally = Tally(make_manifest(NUMBER, outputs=Outputs(target="y", labels=(1, 0))), metrics)
    tally.count([Prediction(value, None) for value in (1, True, 1, "1")])
    tally.count([Prediction(value=True, probabilities=None)])
    assert _counted(metrics, "predictions", "label") == {"1": 3, "True": 2}


def test_a_regression_has_no_label() -> None:
    """However many different numbers it answers, there is one series."""
    metrics = Metrics()
    tally = Tally(make_manifest(NUMBER, task="regression", outputs=A_NUMBER), metrics)
    tally.count([Prediction(float(number), None) for number in range(500)])
    tally.count([Prediction(0.5, None)])
    assert _counted(metrics, "predictions", "label") == {"": 501}


def test_failures_are_counted_by_code() -> None:
    """Beside the rows that were answered, alone and in a batch."""
    metrics = Metrics()
    tally = Tally(make_manifest(NUMBER), metrics)
    tally.count([Prediction("no", None), FAILED, REQUIRED, FAILED])
    tally.count([FAILED])
    assert _counted(metrics, "predictions", "label") == {"no": 1}
    assert _counted(metrics, "row_errors", "code") == {"model_failed": 3, "required": 1}
