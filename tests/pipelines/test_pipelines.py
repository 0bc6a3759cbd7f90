"""Rows become what the estimator takes, and what it answers becomes predictions."""

import numpy as np
import pandas as pd

from app.manifest import Outputs
from app.pipelines import pipeline_for
from app.pipelines.base import Prediction, RawOutput, schema_name
from tests.support.manifests import COUNT, FLAG, GAP, KIND, NUMBER, TEXT, make_manifest


def test_a_matrix_has_the_manifests_order_whatever_the_rows_order() -> None:
    """Values go by name; booleans and whole numbers become floats."""
    pipeline = pipeline_for(make_manifest(NUMBER, COUNT, FLAG))
    matrix = pipeline.preprocess(
        [{"new": True, "rooms": 2, NUMBER.name: 5.0}, {NUMBER.name: 6.0, "rooms": 3, "new": False}]
    )
    assert matrix.dtype == np.float64
    assert matrix.tolist() == [[5.0, 2.0, 1.0], [6.0, 3.0, 0.0]]


def test_what_is_missing_becomes_nan() -> None:
    """Null and absent are the same to the estimator."""
    matrix = pipeline_for(make_manifest(NUMBER, GAP)).preprocess([{NUMBER.name: 1.0, "age": None}, {NUMBER.name: 2.0}])
    assert np.isnan(matrix[:, 1]).all()


def test_mixed_values_stay_objects() -> None:
    """`objects` keeps categories as they are."""
    table = pipeline_for(make_manifest(NUMBER, KIND, container="objects")).preprocess(
        [{NUMBER.name: 1.0, "kind": "flat"}]
    )
    assert table.dtype == object
    assert table.tolist() == [[1.0, "flat"]]


def test_a_frame_has_the_fields_as_columns() -> None:
    """`frame` is for estimators that select columns by name."""
    frame = pipeline_for(make_manifest(NUMBER, KIND, container="frame")).preprocess(
        [{"kind": "flat", NUMBER.name: 1.0}]
    )
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == [NUMBER.name, "kind"]


def test_texts_are_composed() -> None:
    """An accent typed as a character of its own is the same text."""
    texts = pipeline_for(make_manifest(TEXT, container="texts")).preprocess([{"text": "cafe\u0301"}, {"text": "plain"}])
    assert texts == ["caf\u00e9", "plain"]


def test_predictions_have_labels_by_position_and_probabilities_by_label() -> None:
    """The manifest's labels name the estimator's classes."""
    raw = RawOutput(classes=np.array([1, 0]), probabilities=np.array([[0.25, 0.75], [0.5, 0.5]]))
    assert pipeline_for(make_manifest(NUMBER)).postprocess(raw) == [
        Prediction("yes", {"no": 0.25, "yes": 0.75}),
        Prediction("no", {"no": 0.5, "yes": 0.5}),
    ]


def test_labels_keep_their_type() -> None:
    """A numeric label is a number in JSON; only as a key of the probabilities is it text."""
    outputs = Outputs(target="digit", labels=(7, 8), probabilities=True)
    raw = RawOutput(classes=np.array([1]), probabilities=np.array([[0.0, 1.0]]))
    assert pipeline_for(make_manifest(NUMBER, outputs=outputs)).postprocess(raw) == [
        Prediction(8, {"7": 0.0, "8": 1.0})
    ]


def test_without_probabilities_there_are_labels_only() -> None:
    """A margin classifier answers labels."""
    assert pipeline_for(make_manifest(NUMBER)).postprocess(RawOutput(classes=np.array([0]))) == [Prediction("no")]


def test_a_regression_answers_numbers() -> None:
    """Plain floats, ready for JSON."""
    outputs = Outputs(target="price")
    pipeline = pipeline_for(make_manifest(NUMBER, task="regression", outputs=outputs))
    assert pipeline.postprocess(RawOutput(values=np.array([1.5, 2.0]))) == [Prediction(1.5), Prediction(2.0)]


def test_types_of_different_models_never_share_a_name() -> None:
    """`a` 12 and `a1` 2 are two models to the OpenAPI document."""
    names = {(name, version): schema_name(make_manifest(NUMBER, name=name, version=version), "Inputs")
             for name, version in (("a", 12), ("a1", 2), ("a-b", 1), ("a--b", 1))}  # fmt: skip
    assert len(set(names.values())) == len(names)
