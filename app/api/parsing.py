"""From the bytes of a body to rows, or to the error that says what is wrong with them.

pydantic's core parses and validates a good body in one pass. Only a body with something wrong in it is taken apart
again, row by row, so that one bad row spoils no other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import FailFast, Field, TypeAdapter, ValidationError

from app.errors import FieldError, InvalidInput, MalformedJson, PresageError, TooManyRows
from app.pipelines import Pipeline
from app.pipelines.base import Row, Wrap
from app.pipelines.rows import closed, field_errors


@dataclass(frozen=True)
class BatchBody:
    """How a protocol writes a batch: an object with one array, each item of which stands for a row."""

    title: str
    member: str
    item: Callable[[Any], Any]  # the type of a row → the type of an item
    row: Callable[[Any], Any]  # an item → the row

    def wrap(self, most: int) -> Wrap:
        """The type of the whole body around a row's type; always the same function, as `Pipeline.validator` needs."""
        return _typed(self, most)


@cache
def _typed(body: BatchBody, most: int) -> Wrap:
    def wrap(row: Any) -> Any:
        item: Any = body.item(row)
        items = Annotated[list[item], Field(min_length=1, max_length=most), FailFast()]
        return closed(body.title, **{body.member: items})

    return wrap


@cache
def _untyped(body: BatchBody, most: int) -> TypeAdapter[Any]:
    items = Annotated[list[Any], Field(min_length=1, max_length=most)]
    return TypeAdapter(closed(body.title, **{body.member: items}))


def parse_one(content: bytes, pipeline: Pipeline, wrap: Wrap) -> Any:
    """The body as `wrap(row type)` says. Raises MalformedJson, or InvalidInput naming the fields."""
    try:
        return pipeline.validator(wrap).validator.validate_json(content)
    except ValidationError as error:
        raise _refusal(error, pipeline.names) from None


def parse_batch(content: bytes, pipeline: Pipeline, body: BatchBody, most: int) -> list[Row | FieldError]:
    """The rows of a batch, each bad one as what is wrong with it.

    Raises MalformedJson, TooManyRows, or InvalidInput when the body around the rows is wrong.
    """
    try:
        items = pipeline.validator(body.wrap(most)).validator.validate_json(content)[body.member]
    except ValidationError as error:
        if _is_malformed(error):
            raise _refusal(error, ()) from None
    else:
        return [body.row(item) for item in items]
    try:
        items = _untyped(body, most).validator.validate_json(content)[body.member]
    except ValidationError as error:
        raise _refusal(error, (body.member,)) from None
    return pipeline.validate([body.row(item) for item in items])


def _refusal(error: ValidationError, names: tuple[str, ...]) -> PresageError:
    if _is_malformed(error):
        return MalformedJson(error.errors(include_url=False, include_input=False)[0]["msg"])
    if any(found["type"] == "too_long" for found in _some(error)):
        return TooManyRows("the batch has more rows than one request may carry")
    return InvalidInput("the input does not fit", errors=field_errors(error, names))


def _some(error: ValidationError) -> Any:
    """The details of an error that has few; of one that has many, none matters."""
    few = error.error_count() <= 2  # noqa: PLR2004 -- the array's length, and an unknown member beside it
    return error.errors(include_url=False, include_context=False, include_input=False) if few else ()


def _is_malformed(error: ValidationError) -> bool:
    return error.error_count() == 1 and _some(error)[0]["type"] == "json_invalid"
