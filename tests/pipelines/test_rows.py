"""A row's type comes from the manifest: what fits is taken as it is, what does not is named."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.errors import FieldError
from app.manifest import InputField
from app.pipelines import pipeline_for
from app.pipelines.rows import MOST_ERRORS, field_errors
from tests.support.manifests import COUNT, FLAG, GAP, KIND, NUMBER, TEXT, make_manifest


def _first(field: InputField, value: Any) -> Any:
    """What validation makes of one value of one field."""
    container = "texts" if field.dtype == "text" else "matrix"
    return pipeline_for(make_manifest(field, container=container)).validate([{field.name: value}])[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (NUMBER, 5.1),
        (NUMBER, 5),
        (NUMBER, -1e30),
        (NUMBER, 100.0),
        (COUNT, 3),
        (COUNT, -(2**53)),
        (KIND, "flat"),
        (FLAG, True),
        (GAP, None),
        (TEXT, "é\u0000 "),
    ],
)
def test_a_value_that_fits_is_taken_unchanged(field: InputField, value: Any) -> None:
    """Numbers outside the training range are answered too; the range is for people and for drift."""
    assert _first(field, value) == {field.name: value}


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        (NUMBER, "5.1", "wrong_type"),
        (NUMBER, True, "wrong_type"),
        (NUMBER, None, "wrong_type"),
        (NUMBER, float("nan"), "not_finite"),
        (NUMBER, float("inf"), "not_finite"),
        (NUMBER, 1e39, "out_of_range"),
        (NUMBER, -1e39, "out_of_range"),
        (COUNT, 1.5, "wrong_type"),
        (COUNT, 2**53 + 1, "out_of_range"),
        (KIND, "castle", "unknown_category"),
        (KIND, 1, "unknown_category"),
        (FLAG, 1, "wrong_type"),
        (TEXT, "", "empty"),
        (TEXT, " \n", "empty"),
        (TEXT, "a" * 21, "too_long"),
        (TEXT, 1, "wrong_type"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_field(field: InputField, value: Any, code: str) -> None:
    """The error has a stable code and the manifest's name of the field."""
    error = _first(field, value)
    assert isinstance(error, FieldError)
    assert (error.code, error.field, error.row) == (code, field.name, 0)


@pytest.mark.parametrize("candidate", [None, 1, "text", [], [1, 2]])
def test_a_row_that_is_no_object_is_refused(candidate: Any) -> None:
    """A row is an object from field to value."""
    error = pipeline_for(make_manifest(NUMBER)).validate([candidate])[0]
    assert isinstance(error, FieldError)
    assert error.code == "wrong_type"


def test_a_field_may_be_left_out_only_where_missing_values_are_allowed() -> None:
    """`missing: allow` makes a field optional; any other that is absent is named."""
    pipeline = pipeline_for(make_manifest(NUMBER, GAP))
    assert pipeline.validate([{NUMBER.name: 1.0}]) == [{NUMBER.name: 1.0}]
    error = pipeline.validate([{GAP.name: 1.0}])[0]
    assert error == FieldError("required", "is required", field=NUMBER.name, row=0)


def test_unknown_fields_are_counted_and_never_named() -> None:
    """A name that the caller chose is input, and input is not repeated."""
    pipeline = pipeline_for(make_manifest(NUMBER, COUNT))
    error = pipeline.validate([{NUMBER.name: 1.0, COUNT.name: 1, "canary": 1, "canary2": 2}])[0]
    assert isinstance(error, FieldError)
    assert error.detail == "2 members are unknown; known here: sepal length (cm), rooms"


def test_each_bad_row_is_found_at_its_position() -> None:
    """The rows between them are untouched."""
    rows = pipeline_for(make_manifest(NUMBER)).validate([{NUMBER.name: 1.0}, {}, {NUMBER.name: 2.0}, 3])
    assert [isinstance(row, FieldError) and row.row for row in rows] == [False, 1, False, 3]


def test_at_most_twenty_errors_are_listed() -> None:
    """A row with forty wrong fields gets the first twenty."""
    fields = [InputField(name=f"f{i}", dtype="float") for i in range(40)]
    pipeline = pipeline_for(make_manifest(*fields))
    with pytest.raises(ValidationError, match="40 validation errors") as caught:
        pipeline.validator(lambda row: row).validate_json("{}")
    assert len(field_errors(caught.value, pipeline.names)) == MOST_ERRORS


def test_the_schema_tells_what_training_saw() -> None:
    """The docs page shows ranges, categories and examples."""
    schema = pipeline_for(make_manifest(NUMBER, KIND)).validator(lambda row: row).json_schema()
    number = schema["properties"][NUMBER.name]
    assert number["description"] == "Length. Training saw 4.3 to 7.9."
    assert number["examples"] == [5.1]
    assert (number["x-training-minimum"], number["x-training-maximum"]) == (4.3, 7.9)
    assert schema["properties"]["kind"]["enum"] == ["house", "flat"]
    assert schema["additionalProperties"] is False
