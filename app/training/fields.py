"""The input field that a column of values implies: its dtype, and the range or categories that training sees."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from app.errors import PublishRefused
from app.manifest import Dtype, InputField

# A column of texts is categories when it has few different ones, each about twice; else it is text.
MOST_CATEGORIES = 100
_LEAST_REPETITION = 2
# The longest text that a caller may send; a longer one in training raises it.
TEXT_LENGTH = 10_000

Column = list[Any]


def dtype_of(name: str, column: Column) -> Dtype:
    """The dtype that the values of a column have, None aside. Raises PublishRefused for a mixture."""
    present = [value for value in column if value is not None]
    kinds = {type(value) for value in present}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "integer"
    if kinds and kinds <= {int, float}:
        return "float"
    if kinds == {str}:
        different = len(set(present))
        few = different <= MOST_CATEGORIES and different * _LEAST_REPETITION <= len(present)
        return "category" if few else "text"
    found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "no type at all"
    raise PublishRefused(f"the column {name} holds values of {found}: use numbers, texts or true and false")


def converted(name: str, column: Column, dtype: Dtype) -> Column:
    """The values as JSON has them for that dtype: 3.0 in a column of integers is 3. Raises PublishRefused."""
    convert = _CONVERT[dtype]
    try:
        return [None if value is None else convert(value) for value in column]
    except (TypeError, ValueError, OverflowError):
        raise PublishRefused(f"the column {name} holds a value that cannot be of dtype {dtype}") from None


def field_of(name: str, column: Column, dtype: Dtype, given: InputField | None = None) -> InputField:
    """The field for a column of converted values; what `given` sets goes before what the column shows."""
    present = [value for value in column if value is not None]
    members = {"missing": "allow" if len(present) < len(column) else "refuse", **_seen(dtype, present)}
    if given is not None:
        members |= given.model_dump(exclude_unset=True)
    try:
        return InputField(**{**members, "name": name, "dtype": dtype})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise PublishRefused(f"the field {name}: {first['msg']}") from None


def _seen(dtype: Dtype, present: Column) -> dict[str, Any]:
    """Range or categories, and an example from the middle."""
    if not present:
        return {"max_length": TEXT_LENGTH} if dtype == "text" else {}
    match dtype:
        case "float" | "integer":
            middle = sorted(present)[len(present) // 2]
            return {"minimum": float(min(present)), "maximum": float(max(present)), "example": middle}
        case "category":
            found = sorted(set(present), key=lambda value: (type(value).__name__, value))
            return {"categories": tuple(found), "example": max(found, key=present.count)}
        case "boolean":
            return {"example": present[0]}
        case "text":
            by_length = sorted(present, key=len)
            return {"max_length": max(TEXT_LENGTH, len(by_length[-1])), "example": by_length[len(by_length) // 2]}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _boolean(value: Any) -> bool:
    if value not in (0, 1):
        raise ValueError
    return bool(value)


def _float(value: Any) -> float:
    if isinstance(value, str) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _integer(value: Any) -> int:
    if isinstance(value, str) or int(value) != value:
        raise ValueError
    return int(value)


def _category(value: Any) -> bool | int | str:
    return value if isinstance(value, bool | str) else _integer(value)


_CONVERT: Mapping[Dtype, Callable[[Any], Any]] = {
    "text": _text,
    "boolean": _boolean,
    "float": _float,
    "integer": _integer,
    "category": _category,
}
