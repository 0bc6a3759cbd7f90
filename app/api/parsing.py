"""From the bytes of a body to rows, or to the error that says what is wrong with them.

pydantic's core parses and validates a good body in one pass. Only a batch with something wrong in it is taken apart
item by item, so that one bad row spoils no other; and so is one that may have far too many rows, since reading stops
there at the first row too many, where the one pass would build a million of them while the event loop stands still.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import FailFast, Field, ValidationError

from app.errors import FieldError, InvalidInput, MalformedJson, PresageError, TooManyRows
from app.pipelines import Pipeline
from app.pipelines.base import Row, Wrap
from app.pipelines.rows import closed, field_errors

_MOST_DIGITS = 1_000


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
    # An array has at most one item more than the text has commas.
    if content.count(b",") < most * len(pipeline.names):
        try:
            items = pipeline.validator(body.wrap(most)).validator.validate_json(content)[body.member]
        except ValidationError:
            pass  # a row may hold what pydantic's parser takes for no JSON at all, such as half a surrogate pair
        else:
            return [body.row(item) for item in items]
    return pipeline.validate([body.row(item) for item in split_items(content, body.member, most)])


def _refusal(error: ValidationError, names: tuple[str, ...]) -> PresageError:
    if _is_malformed(error):
        return MalformedJson(error.errors(include_url=False, include_input=False)[0]["msg"])
    return InvalidInput.because(field_errors(error, names))


def _is_malformed(error: ValidationError) -> bool:
    return error.error_count() == 1 and error.errors(include_input=False)[0]["type"] == "json_invalid"


def split_items(content: bytes, member: str, most: int) -> list[Any]:
    """The items of `{"<member>": [item, …]}`, unvalidated, read one by one.

    Raises MalformedJson, InvalidInput for another object than that or an empty array, and TooManyRows.
    """
    try:
        return list(_Reader(content.decode()).items(member, most))
    except RecursionError:
        raise MalformedJson("the JSON is nested too deeply") from None
    except UnicodeDecodeError:
        raise MalformedJson("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise MalformedJson(f"{error.msg} at character {error.pos}") from None


def _integer(digits: str) -> int | float:
    """Python reads no integer of more than 4,300 digits; one of so many is out of every field's range anyway."""
    return int(digits) if len(digits) < _MOST_DIGITS else math.inf


class _Reader:
    """A cursor over JSON text; values are read by the standard library."""

    _space = re.compile(r"[ \t\n\r]*").match
    _decode = json.JSONDecoder(parse_int=_integer).raw_decode

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._skip_space()

    def items(self, member: str, most: int) -> Iterator[Any]:
        """Each item of the one array."""
        if not self._take("{"):
            self._value()
            raise _wrong("wrong_type", "must be an object")
        if self._take("}"):
            raise _wrong("required", "is required", member)
        if self._value() != member:
            raise _wrong("unknown_field", f"1 member is unknown; known here: {member}")
        self._expect(":")
        if not self._take("["):
            self._value()
            raise _wrong("wrong_type", "must be an array", member)
        if self._take("]"):
            raise _wrong("too_few_rows", "must have at least one row", member)
        yield from self._array(most)
        if self._take(","):
            raise _wrong("unknown_field", f"a member is unknown or comes twice; known here: {member}")
        self._expect("}")
        if self._at < len(self._text):
            raise json.JSONDecodeError("Extra data", self._text, self._at)

    def _array(self, most: int) -> Iterator[Any]:
        count = 0
        while True:
            count += 1
            if count > most:
                raise TooManyRows(f"one request may carry at most {most} rows", limit=most)
            yield self._value()
            if self._take("]"):
                return
            self._expect(",")

    def _value(self) -> Any:
        value, self._at = self._decode(self._text, self._at)
        self._skip_space()
        return value

    def _take(self, character: str) -> bool:
        found = self._text.startswith(character, self._at)
        if found:
            self._at += 1
            self._skip_space()
        return found

    def _expect(self, character: str) -> None:
        if not self._take(character):
            raise json.JSONDecodeError(f"Expecting '{character}'", self._text, self._at)

    def _skip_space(self) -> None:
        space = self._space(self._text, self._at)
        self._at = space.end() if space else self._at


def _wrong(code: str, detail: str, field: str | None = None) -> InvalidInput:
    return InvalidInput.because([FieldError(code, detail, field=field)])
