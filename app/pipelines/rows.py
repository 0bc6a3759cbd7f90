"""The type of a row, made from a manifest's fields; and what pydantic finds wrong with one, in our words."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, StrictBool, ValidationError, with_config
from pydantic.fields import FieldInfo
from typing_extensions import TypedDict

from app.errors import FieldError
from app.manifest import InputField, describe_range

# Trees work in float32, and scikit-learn refuses a whole batch for one number beyond it; integers pass through float64.
LARGEST_FLOAT = 3.4028234663852886e38
LARGEST_INTEGER = 2**53

MOST_ERRORS = 20
# Past this many, making the list costs more than parsing the body did.
_COUNTABLE_ERRORS = 50

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


def closed(title: str, **members: Any) -> Any:
    """A TypedDict with exactly these members, validated strictly: the type of a JSON object."""
    return with_config(STRICT)(TypedDict(title, members))  # type: ignore[operator]


def row_type(fields: tuple[InputField, ...], title: str) -> Any:
    """The TypedDict of one row. Names may hold spaces or brackets: a row is a dict, never an object with attributes."""
    return closed(title, **{field.name: _member(field) for field in fields})


def _member(field: InputField) -> Any:
    kind: Any = _value_type(field)
    if field.missing == "allow":
        return NotRequired[Annotated[kind | None, _info(field)]]
    return Annotated[kind, _info(field)]


def _value_type(field: InputField) -> Any:
    match field.dtype:
        case "text":
            return str
        case "float":
            return float
        case "integer":
            return int
        case "boolean":
            return StrictBool
        case "category":
            return Literal[field.categories]


def _info(field: InputField) -> FieldInfo:
    bounds: dict[str, Any] = {}
    extra: dict[str, Any] = describe_range(field)
    description = field.description
    match field.dtype:
        case "text":
            # Not empty and not blank. `\S` means other things to JSON Schema's regular expressions than to Rust's.
            bounds = {"min_length": 1, "max_length": field.max_length, "pattern": r"[^ \t\n\r]"}
        case "float":
            bounds = {"ge": -LARGEST_FLOAT, "le": LARGEST_FLOAT}
        case "integer":
            bounds = {"ge": -LARGEST_INTEGER, "le": LARGEST_INTEGER}
    if extra:
        seen = f"Training saw {field.minimum:g} to {field.maximum:g}."
        description = f"{description.rstrip('.')}. {seen}" if description else seen
    examples = None if field.example is None else [field.example]
    info: FieldInfo = Field(
        description=description or None, examples=examples, json_schema_extra=extra or None, **bounds
    )
    return info


def field_errors(
    error: ValidationError, names: tuple[str, ...] = (), *, row: int | None = None, most: int = MOST_ERRORS
) -> list[FieldError]:
    """What is wrong, at most `most` of it, in terms of the fields in `names`.

    Nothing that the caller sent is repeated: an unknown field is counted, not named.
    """
    if error.error_count() > _COUNTABLE_ERRORS:
        return [FieldError("too_many_errors", f"{error.error_count()} things are wrong", row=row)]
    found = error.errors(include_url=False, include_context=False, include_input=False)
    unknown = [e for e in found if e["type"] == "extra_forbidden"]
    errors = [_field_error(e, names, row) for e in found if e["type"] != "extra_forbidden"]
    if unknown:
        errors.append(_unknown_fields(len(unknown), names, row))
    return errors[:most]


def _unknown_fields(count: int, names: tuple[str, ...], row: int | None) -> FieldError:
    known = ", ".join(names[:MOST_ERRORS]) + (", …" if len(names) > MOST_ERRORS else "")
    plural = "member is" if count == 1 else "members are"
    return FieldError("unknown_field", f"{count} {plural} unknown; known here: {known}", row=row)


def _field_error(found: Mapping[str, Any], names: tuple[str, ...], row: int | None) -> FieldError:
    field = next((part for part in reversed(found["loc"]) if part in names), None)
    code, detail = describe_error(found)
    return FieldError(code, detail, field=field, row=row)


def describe_error(found: Mapping[str, Any]) -> tuple[str, str]:
    """One of pydantic's errors as our code and a sentence."""
    code, detail = _CODES.get(found["type"], ("invalid", None))
    return code, detail or found["msg"]


_TIME = "must be a time such as 2026-01-31T12:00:00Z"

# pydantic's error type → our code, and our sentence where pydantic's is of no use to a caller.
_CODES: Mapping[str, tuple[str, str | None]] = {
    "missing": ("required", "is required"),
    "string_type": ("wrong_type", "must be a string"),
    "float_type": ("wrong_type", "must be a number"),
    "int_type": ("wrong_type", "must be a whole number"),
    "int_from_float": ("wrong_type", "must be a whole number"),
    "int_parsing_size": ("out_of_range", "has too many digits"),
    "bool_type": ("wrong_type", "must be true or false"),
    "dict_type": ("wrong_type", "must be an object"),
    "model_type": ("wrong_type", "must be an object"),
    "list_type": ("wrong_type", "must be an array"),
    "finite_number": ("not_finite", "must be a finite number"),
    "greater_than_equal": ("out_of_range", "is too small to be represented"),
    "less_than_equal": ("out_of_range", "is too large to be represented"),
    "string_too_short": ("empty", "must not be empty"),
    "string_pattern_mismatch": ("empty", "must not be blank"),
    "string_too_long": ("too_long", None),
    "string_unicode": ("invalid_unicode", "must be valid Unicode"),
    "too_short": ("too_few_rows", "must have at least one row"),
    "uuid_type": ("wrong_type", "must be a UUID"),
    "uuid_parsing": ("wrong_type", "must be a UUID"),
    "datetime_type": ("wrong_type", _TIME),
    "datetime_parsing": ("wrong_type", _TIME),
    "datetime_from_date_parsing": ("wrong_type", _TIME),
    "datetime_object_invalid": ("wrong_type", _TIME),
    "datetime_range": ("out_of_range", None),
    "truth_type": ("wrong_type", None),
    "literal_error": ("unknown_category", "is none of the values that training saw"),
}
